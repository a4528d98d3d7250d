"""Admission of requests for the event loop: the protocol, and an implementation within this process."""

import time
from typing import Protocol

from control_plane.tenancy.limits.admission import Admission, Quota, Ticket
from control_plane.tenancy.tenants import Tenant


class Limiter(Protocol):
    """Admits requests, and is notified of their end."""

    async def admit(self, tenant: Tenant, sequences: int, tokens: int) -> Ticket:
        """See `Admission.admit`."""

    async def release(self, ticket: Ticket, used_tokens: int) -> None:
        """See `Admission.release`."""

    async def quota(self, tenant: Tenant) -> Quota:
        """See `Admission.quota`."""


class LocalLimiter:
    """A limiter for a single control plane: it keeps accounts in memory and never waits."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    async def admit(self, tenant: Tenant, sequences: int, tokens: int) -> Ticket:
        """See `Admission.admit`."""
        return self._admission.admit(tenant, sequences, tokens, time.monotonic())

    async def release(self, ticket: Ticket, used_tokens: int) -> None:
        """See `Admission.release`."""
        self._admission.release(ticket, used_tokens, time.monotonic())

    async def quota(self, tenant: Tenant) -> Quota:
        """See `Admission.quota`."""
        return self._admission.quota(tenant, time.monotonic())
