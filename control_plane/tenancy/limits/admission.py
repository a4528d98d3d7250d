"""Decides which requests are admitted. It reads no clock: callers pass `now`, in seconds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from control_plane.errors import QueueFull, QuotaExceeded
from control_plane.tenancy.limits.bucket import MINUTE, SLACK, Bucket, Charge
from control_plane.tenancy.limits.budgets import check_budgets
from control_plane.tenancy.limits.places import RETRY_SECONDS
from control_plane.tenancy.tenants import Limits, Tenant
from control_plane.tenancy.usage import Spent


@dataclass(frozen=True)
class Ticket:
    """An admitted request, until it is released. Tickets are compared by id."""

    tenant: str = field(compare=False)
    sequences: int = field(compare=False)
    tokens: int = field(compare=False)
    expires: float = field(compare=False, default=math.inf)
    """Time when the control plane that admitted it must have crashed: a live one would have released it."""
    id: str = field(default_factory=lambda: uuid4().hex)


@dataclass(frozen=True)
class Allowance:
    """The rest of a limit per minute, and the seconds until it is fully available again."""

    limit: int
    remaining: int
    reset: float


@dataclass(frozen=True)
class Quota:
    """The rest of a tenant's limits per minute; None is unlimited."""

    requests: Allowance | None
    tokens: Allowance | None


_TICKET = ("tenant", "sequences", "tokens", "expires", "id")


@dataclass
class Account:
    """The state of one tenant: its buckets and its admitted requests."""

    requests: Bucket | None = None
    tokens: Bucket | None = None
    live: dict[Ticket, Charge | None] = field(default_factory=dict)
    sequences: int = 0

    def set_limits(self, limits: Limits, now: float) -> None:
        self.requests = _resized(self.requests, limits.rpm, now)
        self.tokens = _resized(self.tokens, limits.tpm, now)

    def to_json(self) -> dict[str, Any]:
        """The state for a database; `from_json` reads it."""
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
        """The account that `to_json` wrote. Expired tickets count as released, with all tokens used."""
        requests, tokens = (Bucket.from_json(state[name]) for name in ("requests", "tokens"))
        account = cls(requests, tokens)
        # A copy: `settle` merges charges, which would shift the indices.
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
        """Whether the account equals a new one, and so need not be kept."""
        buckets = (self.requests, self.tokens)
        return not self.live and not any(bucket and bucket.used(now) for bucket in buckets)


class Admission:
    """Enforces tenants' limits, and the bound on each tenant's sequences that wait or run."""

    def __init__(self, max_queued_per_tenant: int, accounts: dict[str, Account] | None = None) -> None:
        """`accounts` holds earlier state by tenant name. The bound is a number of sequences."""
        self._max_queued_per_tenant = max_queued_per_tenant
        self.accounts = accounts or {}
        self._swept = 0.0

    @property
    def live_requests(self) -> int:
        """Number of requests that are admitted and not released."""
        return sum(len(account.live) for account in self.accounts.values())

    @property
    def live_sequences(self) -> int:
        """Number of sequences of all live requests."""
        return sum(account.sequences for account in self.accounts.values())

    @property
    def remembered(self) -> int:
        """Number of tenants whose account is kept: those with live requests or recent usage."""
        return len(self.accounts)

    def admit(
        self,
        tenant: Tenant,
        sequences: int,
        tokens: int,
        now: float,
        expires: float = math.inf,
        spent: Spent | None = None,
    ) -> Ticket:
        """Admit a request with a number of sequences, and at most `tokens` tokens of prompts and outputs.

        `spent` is what is booked to a tenant with budgets. Raises `QuotaExceeded` or `QueueFull`; the state
        is then unchanged.
        """
        self._forget_fresh(now)
        self._check_possible(tenant.limits, sequences, tokens)
        account = self.accounts.get(tenant.name) or Account()
        account.set_limits(tenant.limits, now)
        _check_quotas(account, tenant.limits, tokens, now)
        if spent is not None:
            check_budgets(tenant.limits, spent, sum(ticket.tokens for ticket in account.live), tokens)
        self._check_queue(account, sequences)
        ticket = Ticket(tenant.name, sequences, tokens, expires)
        if account.requests:
            account.requests.settle(account.requests.charge(1, now), 0, now)
        account.live[ticket] = account.tokens.charge(tokens, now) if account.tokens else None
        account.sequences += sequences
        self.accounts[tenant.name] = account
        return ticket

    def release(self, ticket: Ticket, used_tokens: int, now: float) -> None:
        """End a request, and correct its charge to the tokens that it has used, fewer or more than admitted.

        Releasing a ticket again has no effect.
        """
        account = self.accounts.get(ticket.tenant)
        if account is None or ticket not in account.live:
            return
        charge = account.live.pop(ticket)
        if charge and account.tokens:
            account.tokens.settle(charge, ticket.tokens - used_tokens, now)
        account.sequences -= ticket.sequences
        if account.is_fresh(now):
            del self.accounts[ticket.tenant]

    def live(self, tenant: str) -> frozenset[Ticket]:
        """The tenant's requests that are admitted and not released."""
        account = self.accounts.get(tenant)
        return frozenset(account.live if account else ())

    def quota(self, tenant: Tenant, now: float) -> Quota:
        """The rest of the tenant's limits per minute."""
        account = self.accounts.get(tenant.name) or Account()
        return Quota(
            _allowance(account.requests, tenant.limits.rpm, now),
            _allowance(account.tokens, tenant.limits.tpm, now),
        )

    def _check_possible(self, limits: Limits, sequences: int, tokens: int) -> None:
        """Refuse a request that would exceed a limit even alone: retrying does not help."""
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

    def _check_queue(self, account: Account, sequences: int) -> None:
        if account.sequences + sequences > self._max_queued_per_tenant:
            raise QueueFull(
                f"the tenant has {account.sequences} sequences waiting or running, and "
                f"{sequences} more would exceed its {self._max_queued_per_tenant}",
                RETRY_SECONDS,
            )

    def _forget_fresh(self, now: float) -> None:
        """Drop fresh accounts, once a minute: within that time every bucket refills."""
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
