"""The last lines that a function wrote to stdout and stderr."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from datetime import UTC, datetime

from control_plane.faas.types import DEFAULT_NAMESPACE, LogMessage

DEFAULT_CAPACITY = 1000


class FunctionLog:
    """A ring of the newest lines, over all processes that one function has had.

    Whoever follows it reads from the ring: a slow reader loses old lines, and costs no memory.
    """

    def __init__(self, function: str, capacity: int = DEFAULT_CAPACITY) -> None:
        self._function = function
        self._messages: deque[LogMessage] = deque(maxlen=capacity)
        self._appended = 0
        self._changed = asyncio.Event()
        self._closed = False

    def append(self, instance: str, text: str) -> None:
        """Add one line, stamped with the present time."""
        self._messages.append(
            LogMessage(self._function, DEFAULT_NAMESPACE, instance, datetime.now(UTC), text)
        )
        self._appended += 1
        self._wake_followers()

    def last_line(self, instance: str) -> str:
        """The last line of one process, or nothing."""
        written = (message.text for message in reversed(self._messages) if message.instance == instance)
        return next(written, "")

    def close(self) -> None:
        """End all streams that follow this log."""
        self._closed = True
        self._wake_followers()

    async def read(
        self, since: datetime | None = None, tail: int = 0, follow: bool = False
    ) -> AsyncIterator[LogMessage]:
        """Lines from `since` on, the last `tail` of them (all when 0 or less), then new ones if `follow`."""
        messages = [message for message in self._messages if since is None or message.timestamp >= since]
        read = self._appended
        for message in messages[-tail:] if tail > 0 else messages:
            yield message
        while follow and not (self._closed and read == self._appended):
            if read == self._appended:
                await self._changed.wait()
            unread = min(self._appended - read, len(self._messages))
            read = self._appended
            for message in list(self._messages)[len(self._messages) - unread :]:
                yield message

    def _wake_followers(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
