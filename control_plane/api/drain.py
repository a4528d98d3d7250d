"""Counts the requests in progress, and waits for them when the server is to end."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from control_plane.errors import ShuttingDown


@dataclass
class Drain:
    """Lets requests in until it is told to end."""

    in_progress: int = 0
    ending: bool = False
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count one request for as long as the context lasts. Raises `ShuttingDown` after the end began."""
        if self.ending:
            raise ShuttingDown
        self.in_progress += 1
        try:
            yield
        finally:
            self.in_progress -= 1
            if not self.in_progress:
                self._idle.set()

    async def finish(self, seconds: float) -> bool:
        """Let nobody in any more; returns whether all requests came to their end within the time."""
        self.ending = True
        self._idle.clear()
        if not self.in_progress:
            return True
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
