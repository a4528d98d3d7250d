"""Admission of requests for the event loop: the protocol, and an implementation within this process."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from control_plane.tenancy.limits.admission import Admission, Quota, Ticket
from control_plane.tenancy.limits.places import Places
from control_plane.tenancy.storage.database import is_postgres
from control_plane.tenancy.storage.store_thread import StoreThread
from control_plane.tenancy.tenants import Tenant
from control_plane.tenancy.usage import Spent


class Limiter(Protocol):
    """Admits requests, and is notified of their end."""

    async def admit(self, tenant: Tenant, sequences: int, tokens: int) -> Ticket:
        """See `Admission.admit`. Also raises what `Places.take` raises."""

    async def release(self, ticket: Ticket, used_tokens: int) -> None:
        """See `Admission.release`. Each ticket is released once, when its tokens are booked."""

    async def quota(self, tenant: Tenant) -> Quota:
        """See `Admission.quota`."""


class LocalLimiter:
    """A limiter for a single control plane: it keeps accounts in memory, and waits for budgets only."""

    def __init__(
        self,
        spent: Callable[[str], Awaitable[Spent]],
        max_queued: int,
        max_queued_per_tenant: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`spent` reads what is booked to a tenant with budgets, and may raise `DatabaseUnavailable`.

        The bounds are numbers of sequences: those that tenants share, and each tenant's.
        """
        self._spent = spent
        self._places = Places(max_queued)
        self._admission = Admission(max_queued_per_tenant)
        self._clock = clock

    async def admit(self, tenant: Tenant, sequences: int, tokens: int) -> Ticket:
        """See `Limiter.admit`."""
        self._places.take(tenant, sequences)
        try:
            spent = await self._booked(tenant) if tenant.limits.has_budgets else None
            return self._admission.admit(tenant, sequences, tokens, self._clock(), spent=spent)
        except BaseException:
            self._places.give_back(tenant.name, sequences)
            raise

    async def _booked(self, tenant: Tenant) -> Spent:
        """What is booked to the tenant."""
        running = self._admission.live(tenant.name)
        spent = await self._spent(tenant.name)
        # Requests that have ended meanwhile may have been booked after that.
        ended = sum(ticket.tokens for ticket in running - self._admission.live(tenant.name))
        return replace(spent, ending=ended)

    async def release(self, ticket: Ticket, used_tokens: int) -> None:
        """See `Limiter.release`."""
        self._places.give_back(ticket.tenant, ticket.sequences)
        self._admission.release(ticket, used_tokens, self._clock())

    async def quota(self, tenant: Tenant) -> Quota:
        """See `Limiter.quota`."""
        return self._admission.quota(tenant, self._clock())


def limiter_of(
    store: StoreThread,
    database: Path | str,
    max_queued: int,
    max_queued_per_tenant: int,
    lease_seconds: float,
) -> Limiter:
    """The limiter for a database. Control planes that share it also share the tenants' limits."""
    if not is_postgres(database):
        return LocalLimiter(
            lambda tenant: store.run(lambda opened: opened.spent(tenant)), max_queued, max_queued_per_tenant
        )
    # Imported here because it needs the PostgreSQL driver, which is optional.
    from control_plane.tenancy.limits.shared_limiter import SharedLimiter

    return SharedLimiter(store, max_queued, max_queued_per_tenant, lease_seconds)
