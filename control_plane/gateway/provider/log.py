"""The newest lines that a function wrote to stdout and stderr."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from datetime import UTC, datetime

from control_plane.faas.types import DEFAULT_NAMESPACE, LogMessage

DEFAULT_CAPACITY = 1000
MAX_CHARACTERS = 1 << 20
"""The most text that one log keeps."""


class FunctionLog:
    """A ring buffer of the newest lines of all processes that one function has had.

    It keeps at most `capacity` lines, and `MAX_CHARACTERS`. Followers read from the ring buffer: a slow one
    misses old lines, and uses no extra memory.
    """

    def __init__(self, function: str, capacity: int = DEFAULT_CAPACITY) -> None:
        self._function = function
        self._capacity = capacity
        self._messages: deque[LogMessage] = deque()
        self._characters = 0
        self._appended = 0
        self._changed = asyncio.Event()
        self._closed = False

    def append(self, instance: str, text: str) -> None:
        """Add one line with the current time."""
        self._messages.append(
            LogMessage(self._function, DEFAULT_NAMESPACE, instance, datetime.now(UTC), text)
        )
        self._appended += 1
        self._characters += len(text)
        while len(self._messages) > self._capacity or self._characters > MAX_CHARACTERS:
            self._characters -= len(self._messages.popleft().text)
        self._wake_followers()

    def last_line(self, instance: str) -> str:
        """The last line of one process, or "" if it has written none."""
        written = (message.text for message in reversed(self._messages) if message.instance == instance)
        return next(written, "")

    def close(self) -> None:
        """End the streams of all followers."""
        self._closed = True
        self._wake_followers()

    async def read(
        self, since: datetime | None = None, tail: int = 0, follow: bool = False
    ) -> AsyncIterator[LogMessage]:
        """The last `tail` lines since `since` (all of them if `tail` <= 0), then new lines if `follow`."""
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
