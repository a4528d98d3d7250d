"""Admission of requests for the event loop: the protocol, and an implementation within this process."""

import time
from collections.abc import Callable
from typing import Protocol

from control_plane.tenancy.limits.admission import Admission, Quota, Ticket
from control_plane.tenancy.limits.places import Places
from control_plane.tenancy.tenants import Tenant


class Limiter(Protocol):
    """Admits requests, and is notified of their end."""

    async def admit(self, tenant: Tenant, sequences: int, tokens: int) -> Ticket:
        """See `Admission.admit`. Also raises what `Places.take` raises."""

    async def release(self, ticket: Ticket, used_tokens: int) -> None:
        """See `Admission.release`. Each ticket is released once."""

    async def quota(self, tenant: Tenant) -> Quota:
        """See `Admission.quota`."""


class LocalLimiter:
    """A limiter for a single control plane: it keeps accounts in memory and never waits."""

    def __init__(
        self, max_queued: int, max_queued_per_tenant: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """The bounds are numbers of sequences: those that tenants share, and each tenant's."""
        self._places = Places(max_queued)
        self._admission = Admission(max_queued_per_tenant)
        self._clock = clock

    async def admit(self, tenant: Tenant, sequences: int, tokens: int) -> Ticket:
        """See `Limiter.admit`."""
        self._places.take(tenant, sequences)
        try:
            return self._admission.admit(tenant, sequences, tokens, self._clock())
        except BaseException:
            self._places.give_back(tenant.name, sequences)
            raise

    async def release(self, ticket: Ticket, used_tokens: int) -> None:
        """See `Limiter.release`."""
        self._places.give_back(ticket.tenant, ticket.sequences)
        self._admission.release(ticket, used_tokens, self._clock())

    async def quota(self, tenant: Tenant) -> Quota:
        """See `Limiter.quota`."""
        return self._admission.quota(tenant, self._clock())
