"""Sends and receives the bodies of HTTP messages with as few copies as possible."""

import socket
import time
from collections.abc import Sequence

JOINED_BYTES = 65536
"""Parts of fewer bytes in all are joined first: one copy costs less than sendmsg's longer way."""
RECEIVE_BUFFER_BYTES = 16384
"""Size of the buffer for a message's first bytes, which are copied: little of a large message."""


def send_all(connection: socket.socket, parts: Sequence[bytes | memoryview]) -> None:
    """Send all parts, whose memory views are of bytes, within the connection's timeout; raises OSError."""
    if sum(map(len, parts)) < JOINED_BYTES:
        connection.sendall(b"".join(parts))
        return
    timeout = connection.gettimeout()
    deadline = None if timeout is None else time.monotonic() + timeout
    left = [memoryview(part) for part in parts if len(part)]
    while left:
        if deadline is not None:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
        sent = connection.sendmsg(left)
        while left and sent >= len(left[0]):
            sent -= len(left.pop(0))
        if sent:
            left[0] = left[0][sent:]


class MessageTooLarge(Exception):
    """A message has more bytes than its reader accepts."""


class BodyBuffer:
    """Collects one body, in part past the HTTP parser.

    The bytes that were received together with the header come through the parser, by `append`. If the header
    announces the body's length, the rest is received from the socket straight into `rest()`, which saves
    copying it and the parser's work.
    """

    def __init__(self, max_nbytes: int, max_direct_nbytes: int) -> None:
        """A body of more than `max_direct_nbytes` gets its memory as it comes, and not at once."""
        self._max_nbytes = max_nbytes
        self._max_direct_nbytes = max_direct_nbytes
        self.data = bytearray()
        """The body, once it is complete."""
        self._filled = 0
        self._is_direct = False

    def announce(self, nbytes: int) -> None:
        """The header is complete, with the body's length. Raises `MessageTooLarge`."""
        if nbytes > self._max_nbytes:
            raise MessageTooLarge
        self._is_direct = 0 < nbytes <= self._max_direct_nbytes
        if self._is_direct:
            self.data = bytearray(nbytes)

    def append(self, piece: bytes) -> None:
        """Add bytes from the parser. Raises `MessageTooLarge`."""
        end = self._filled + len(piece)
        if end > self._max_nbytes:
            raise MessageTooLarge
        self.data[self._filled : end] = piece
        self._filled = end

    def rest(self) -> memoryview | None:
        """The place of the bytes that are still to come; None if they have to go through the parser."""
        return memoryview(self.data)[self._filled :] if self._is_direct else None

    def received(self, nbytes: int) -> bool:
        """Count bytes that were received into `rest()`; returns whether the body is complete."""
        self._filled += nbytes
        return self._filled == len(self.data)
