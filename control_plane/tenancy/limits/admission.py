"""Decides which requests are let in. It has no clock: `now` is in seconds, and never goes back."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from control_plane.errors import Overloaded, QueueFull, QuotaExceeded
from control_plane.tenancy.limits.bucket import MINUTE, SLACK, Bucket, Charge
from control_plane.tenancy.tenants import Limits, Tenant

RETRY_SECONDS = 1.0
"""Where nobody knows when others end."""


@dataclass(frozen=True)
class Ticket:
    """A request that was let in, until it is released. Two are the same when their ids are."""

    tenant: str = field(compare=False)
    sequences: int = field(compare=False)
    tokens: int = field(compare=False)
    expires: float = field(compare=False, default=math.inf)
    """From when on nobody will release it any more: who let it in has crashed."""
    id: str = field(default_factory=lambda: uuid4().hex)


@dataclass(frozen=True)
class Allowance:
    """What is left of a limit per minute, and the seconds until all of it is there again."""

    limit: int
    remaining: int
    reset: float


@dataclass(frozen=True)
class Quota:
    """A tenant's allowances; None is unlimited."""

    requests: Allowance | None
    tokens: Allowance | None


_TICKET = ("tenant", "sequences", "tokens", "expires", "id")


@dataclass
class Account:
    """What is remembered of a tenant."""

    requests: Bucket | None = None
    tokens: Bucket | None = None
    live: dict[Ticket, Charge | None] = field(default_factory=dict)
    sequences: int = 0

    def set_limits(self, limits: Limits, now: float) -> None:
        self.requests = _resized(self.requests, limits.rpm, now)
        self.tokens = _resized(self.tokens, limits.tpm, now)

    def to_json(self) -> dict[str, Any]:
        """For a database; `from_json` reads it."""
        buckets = {"requests": self.requests, "tokens": self.tokens}
        return {
            **{name: bucket.to_json() if bucket else None for name, bucket in buckets.items()},
            "live": [
                {
                    **{name: getattr(ticket, name) for name in _TICKET},
                    "charge": self.tokens.index(charge) if charge and self.tokens else None,
                }
                for ticket, charge in self.live.items()
            ],
        }

    @classmethod
    def from_json(cls, state: Mapping[str, Any], now: float) -> "Account":
        """What was written; tickets that have expired count as released, with all that they might use."""
        requests, tokens = (Bucket.from_json(state[name]) for name in ("requests", "tokens"))
        account = cls(requests, tokens)
        # To settle one changes their order.
        charges = list(tokens.charges) if tokens else []
        for entry in state["live"]:
            ticket = Ticket(**{name: entry[name] for name in _TICKET})
            charge = None if entry["charge"] is None else charges[entry["charge"]]
            if ticket.expires > now:
                account.live[ticket] = charge
                account.sequences += ticket.sequences
            elif charge and tokens:
                tokens.settle(charge, 0, now)
        return account

    def is_fresh(self, now: float) -> bool:
        """Whether it is as a new one would be."""
        buckets = (self.requests, self.tokens)
        return not self.live and not any(bucket and bucket.used(now) for bucket in buckets)


class Admission:
    """Holds all tenants to their limits, and the sequences that wait or run to bounds."""

    def __init__(
        self, max_queued: int, max_queued_per_tenant: int, accounts: dict[str, Account] | None = None
    ) -> None:
        """`accounts` by tenant are those to begin with."""
        self._max_queued = max_queued
        self._max_queued_per_tenant = max_queued_per_tenant
        self.accounts = accounts or {}
        self._live_sequences = sum(account.sequences for account in self.accounts.values())
        self._swept = 0.0

    @property
    def live_requests(self) -> int:
        """Requests that were let in and are not released."""
        return sum(len(account.live) for account in self.accounts.values())

    @property
    def live_sequences(self) -> int:
        """Sequences of those."""
        return self._live_sequences

    @property
    def remembered(self) -> int:
        """Tenants with something live, or with less than their whole quota a minute ago."""
        return len(self.accounts)

    def admit(
        self, tenant: Tenant, sequences: int, tokens: int, now: float, expires: float = math.inf
    ) -> Ticket:
        """Let a request in that has that many sequences, and at most so many tokens of prompts and answers.

        Raises `QuotaExceeded`, `QueueFull` or `Overloaded`, and then has changed nothing.
        """
        self._forget_fresh(now)
        self._check_possible(tenant.limits, sequences, tokens)
        account = self.accounts.get(tenant.name) or Account()
        account.set_limits(tenant.limits, now)
        _check_quotas(account, tenant.limits, tokens, now)
        self._check_queue(account, sequences)
        ticket = Ticket(tenant.name, sequences, tokens, expires)
        if account.requests:
            account.requests.settle(account.requests.charge(1, now), 0, now)
        account.live[ticket] = account.tokens.charge(tokens, now) if account.tokens else None
        account.sequences += sequences
        self._live_sequences += sequences
        self.accounts[tenant.name] = account
        return ticket

    def release(self, ticket: Ticket, used_tokens: int, now: float) -> None:
        """A request has ended, and needed so many tokens, be it fewer or more than it was let in for.

        Again, for the same one, it does nothing.
        """
        account = self.accounts.get(ticket.tenant)
        if account is None or ticket not in account.live:
            return
        charge = account.live.pop(ticket)
        if charge and account.tokens:
            account.tokens.settle(charge, ticket.tokens - used_tokens, now)
        account.sequences -= ticket.sequences
        self._live_sequences -= ticket.sequences
        if account.is_fresh(now):
            del self.accounts[ticket.tenant]

    def quota(self, tenant: Tenant, now: float) -> Quota:
        """What the tenant may still ask for."""
        account = self.accounts.get(tenant.name) or Account()
        return Quota(
            _allowance(account.requests, tenant.limits.rpm, now),
            _allowance(account.tokens, tenant.limits.tpm, now),
        )

    def _check_possible(self, limits: Limits, sequences: int, tokens: int) -> None:
        """Refuse for good what could not even be granted alone."""
        if limits.tpm is not None and tokens > limits.tpm:
            raise QuotaExceeded(
                f"the request may take {tokens} tokens, and the limit is {limits.tpm} tokens per minute", None
            )
        if sequences > self._max_queued_per_tenant:
            raise QueueFull(
                f"the request has {sequences} sequences, and a tenant may have "
                f"{self._max_queued_per_tenant} waiting or running",
                None,
            )
        if sequences > self._max_queued:
            raise Overloaded(
                f"the request has {sequences} sequences, and the server takes {self._max_queued}", None
            )

    def _check_queue(self, account: Account, sequences: int) -> None:
        if account.sequences + sequences > self._max_queued_per_tenant:
            raise QueueFull(
                f"the tenant has {account.sequences} sequences waiting or running, and "
                f"{sequences} more would exceed its {self._max_queued_per_tenant}",
                RETRY_SECONDS,
            )
        if self._live_sequences + sequences > self._max_queued:
            raise Overloaded("the server has too many sequences waiting or running", RETRY_SECONDS)

    def _forget_fresh(self, now: float) -> None:
        """Once a minute, in which every bucket fills up."""
        if now - self._swept >= MINUTE:
            self._swept = now
            self.accounts = {
                name: account for name, account in self.accounts.items() if not account.is_fresh(now)
            }


def _check_quotas(account: Account, limits: Limits, tokens: int, now: float) -> None:
    if limits.max_concurrency is not None and len(account.live) >= limits.max_concurrency:
        raise QuotaExceeded(f"the limit is {limits.max_concurrency} requests at once", RETRY_SECONDS)
    if account.requests and (wait := account.requests.wait(1, now)):
        raise QuotaExceeded(f"the limit is {limits.rpm} requests per minute", wait)
    if account.tokens and (wait := account.tokens.wait(tokens, now)):
        raise QuotaExceeded(
            f"the limit is {limits.tpm} tokens per minute, and the request may take {tokens}", wait
        )


def _resized(bucket: Bucket | None, limit: int | None, now: float) -> Bucket | None:
    if limit is None:
        return None
    if bucket is None:
        return Bucket(limit, now)
    if bucket.capacity != limit:
        bucket.resize(limit, now)
    return bucket


def _allowance(bucket: Bucket | None, limit: int | None, now: float) -> Allowance | None:
    if limit is None:
        return None
    used = min(bucket.used(now), limit) if bucket else 0.0
    remaining = min(limit, int(limit - used + SLACK * limit))
    return Allowance(limit, remaining, used / limit * MINUTE)
