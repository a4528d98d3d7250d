"""Sends what is in several buffers, without putting large ones together first."""

import socket
import time
from collections.abc import Sequence

JOINED_BYTES = 65536
"""Less than this is put together: one copy costs less than a longer way into the kernel."""


def send_all(connection: socket.socket, parts: Sequence[bytes | memoryview]) -> None:
    """All of it within the connection's timeout; raises OSError. Memory views are of bytes."""
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
