"""Lets requests in for the event loop, and keeps what has to be remembered: in this process."""

import time
from typing import Protocol

from control_plane.tenancy.limits.admission import Admission, Quota, Ticket
from control_plane.tenancy.tenants import Tenant


class Limiter(Protocol):
    """What is asked before a request, and told after it."""

    async def admit(self, tenant: Tenant, sequences: int, tokens: int) -> Ticket:
        """As `Admission.admit`."""

    async def release(self, ticket: Ticket, used_tokens: int) -> None:
        """As `Admission.release`."""

    async def quota(self, tenant: Tenant) -> Quota:
        """As `Admission.quota`."""


class LocalLimiter:
    """Remembers what tenants have had in this process; it never waits."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    async def admit(self, tenant: Tenant, sequences: int, tokens: int) -> Ticket:
        """As every limiter's."""
        return self._admission.admit(tenant, sequences, tokens, time.monotonic())

    async def release(self, ticket: Ticket, used_tokens: int) -> None:
        """As every limiter's."""
        self._admission.release(ticket, used_tokens, time.monotonic())

    async def quota(self, tenant: Tenant) -> Quota:
        """As every limiter's."""
        return self._admission.quota(tenant, time.monotonic())
