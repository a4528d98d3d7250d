"""Counts the requests in progress, and waits for them when the server shuts down."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from control_plane.errors import QueueFull, ShuttingDown

RETRY_SECONDS = 1.0
"""Retry-After, in seconds, for a client with too many requests in progress."""


@dataclass
class Drain:
    """Admits requests until shutdown begins, and a limited number of each tenant at a time."""

    max_per_tenant: int
    """The most requests in progress of one tenant. Each may hold a body in memory before it is admitted."""
    ending: bool = False
    """Whether shutdown has begun."""
    _in_progress: Counter[str] = field(default_factory=Counter)
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._idle.set()

    @property
    def in_progress(self) -> int:
        """The number of requests in progress, of all tenants."""
        return self._in_progress.total()

    @contextmanager
    def request(self, tenant: str) -> Iterator[None]:
        """Count one request of a tenant for as long as the context lasts.

        Raises `ShuttingDown` once shutdown has begun, and `QueueFull` when the tenant has too many.
        """
        if self.ending:
            raise ShuttingDown
        if self._in_progress.get(tenant, 0) >= self.max_per_tenant:
            raise QueueFull(f"the tenant has {self.max_per_tenant} requests in progress", RETRY_SECONDS)
        self._in_progress[tenant] += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._in_progress[tenant] -= 1
            if not self._in_progress[tenant]:
                del self._in_progress[tenant]
            if not self._in_progress:
                self._idle.set()

    async def idle(self) -> None:
        """Wait until no request is in progress."""
        while self._in_progress:
            await self._idle.wait()

    async def finish(self, seconds: float) -> bool:
        """Admit no more requests and wait for those in progress; returns whether all ended in time."""
        self.ending = True
        try:
            async with asyncio.timeout(seconds):
                await self.idle()
        except TimeoutError:
            return False
        return True
