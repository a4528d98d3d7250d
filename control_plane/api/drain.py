"""Counts the requests in progress, and waits for them when the server shuts down."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from control_plane.errors import QueueFull, ShuttingDown

RETRY_SECONDS = 1.0
"""Retry-After, in seconds, for a client with too many requests in progress."""

logger = logging.getLogger(__name__)


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

    @asynccontextmanager
    async def at_end(self, seconds: float) -> AsyncIterator[None]:
        """When the context ends, admit no more requests; those in progress may go on for `seconds`."""
        try:
            yield
        finally:
            self.ending = True
            if self._in_progress:
                logger.warning("finishing %d requests, for up to %g s", self.in_progress, seconds)
            try:
                async with asyncio.timeout(seconds):
                    await self.idle()
            except TimeoutError:
                logger.warning("%d requests are cut off", self.in_progress)
