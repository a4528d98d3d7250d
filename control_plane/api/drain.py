"""Counts the requests in progress, and waits for them when the server is to end."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from control_plane.errors import QueueFull, ShuttingDown

RETRY_SECONDS = 1.0


@dataclass
class Drain:
    """Lets requests in until it is told to end; of one tenant, so many at once."""

    max_per_tenant: int
    """Each may hold a body in memory, before anything is known of what it asks."""
    ending: bool = False
    _in_progress: Counter[str] = field(default_factory=Counter)
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def in_progress(self) -> int:
        """Requests of all tenants."""
        return self._in_progress.total()

    @contextmanager
    def request(self, tenant: str) -> Iterator[None]:
        """Count one request for as long as the context lasts.

        Raises `ShuttingDown` after the end began, and `QueueFull` for one too many.
        """
        if self.ending:
            raise ShuttingDown
        if self._in_progress.get(tenant, 0) >= self.max_per_tenant:
            raise QueueFull(f"the tenant has {self.max_per_tenant} requests in progress", RETRY_SECONDS)
        self._in_progress[tenant] += 1
        try:
            yield
        finally:
            self._in_progress[tenant] -= 1
            if not self._in_progress[tenant]:
                del self._in_progress[tenant]
            if not self._in_progress:
                self._idle.set()

    async def finish(self, seconds: float) -> bool:
        """Let nobody in any more; returns whether all requests came to their end within the time."""
        self.ending = True
        self._idle.clear()
        if not self._in_progress:
            return True
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
