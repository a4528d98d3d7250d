"""Sends and receives the bodies of HTTP messages with as few copies as possible."""

import socket
import time
from collections.abc import Sequence
from ipaddress import ip_address

JOINED_BYTES = 65536
"""Parts of fewer bytes in all are joined first: one copy costs less than sendmsg's longer way."""
RECEIVE_BUFFER_BYTES = 16384
"""Size of the buffer for a message's first bytes, which are copied: little of a large message."""
FIRST_BODY_BYTES = 256 << 10
"""The most memory for an announced body of which little has arrived; then it doubles when it is full."""


def is_loopback(host: str) -> bool:
    """Whether a server that binds this host can be reached from this machine only."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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
    copying it and the parser's work. Memory is taken as bytes arrive: an announcement alone takes little.
    """

    def __init__(self, max_nbytes: int) -> None:
        self._max_nbytes = max_nbytes
        self.data = bytearray()
        """The body, once it is complete."""
        self._announced = 0
        self._first_nbytes = 0
        self._filled = 0
        self._rest = memoryview(b"")

    def announce(self, nbytes: int) -> None:
        """The header is complete, with the body's length. Raises `MessageTooLarge`."""
        if nbytes > self._max_nbytes:
            raise MessageTooLarge
        self._announced = self._first_nbytes = nbytes
        while self._first_nbytes > FIRST_BODY_BYTES:
            self._first_nbytes = (self._first_nbytes + 1) // 2

    def append(self, piece: bytes) -> None:
        """Add bytes from the parser. Raises `MessageTooLarge`."""
        if self._filled + len(piece) > self._max_nbytes:
            raise MessageTooLarge
        self.data += piece
        self._filled += len(piece)

    def rest(self) -> memoryview | None:
        """The place of the next bytes that are still to come; None if they have to go through the parser.

        Views that were returned before are invalid from now on, and none of their parts may exist.
        """
        if not self._announced:
            return None
        self._rest.release()
        if self._filled == len(self.data):
            self._grow()
        self._rest = memoryview(self.data)[self._filled :]
        return self._rest

    def received(self, nbytes: int) -> bool:
        """Count bytes that were received into `rest()`; returns whether the body is complete."""
        self._filled += nbytes
        return self._filled == self._announced

    def _grow(self) -> None:
        if self._filled < self._first_nbytes:
            self.data += bytes(self._first_nbytes - self._filled)
        else:
            # The cheapest way to resize it. What it is filled with does not matter.
            self.data *= 2
            del self.data[self._announced :]
