"""Asks functions whether they are alive: one that computes for long still answers on another connection."""

import select
import socket
import time
from collections.abc import Collection, Iterable, Iterator, Set
from contextlib import ExitStack, suppress
from typing import TypeVar

Endpoint = TypeVar("Endpoint", bound=tuple[str, int])

_REQUEST = b"GET /_/health HTTP/1.1\r\nHost: function\r\nConnection: close\r\n\r\n"
_GOOD = b"HTTP/1.1 200 "


def healthy(addresses: Collection[Endpoint], seconds: float, connect_seconds: float) -> Set[Endpoint]:
    """Those of the functions at these addresses that answer within `seconds`. All are asked at once.

    Those that have not taken the connection after `connect_seconds` are not waited for: a kernel does so in
    milliseconds for a function that lives.
    """
    began = time.monotonic()
    with ExitStack() as stack:
        asked: dict[socket.socket, Endpoint] = {}
        for address in addresses:
            family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
            connection = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            connection.setblocking(False)
            with suppress(OSError):  # It connects later, or a failure shows when something is sent.
                connection.connect(tuple(address))
            asked[connection] = address
        connected = _ready(asked, select.POLLOUT, began + min(seconds, connect_seconds))
        sent = [connection for connection in connected if _send(connection)]
        answered = _ready(sent, select.POLLIN, began + seconds)
        return {asked[connection] for connection in answered if _receive(connection) == _GOOD}


def _ready(connections: Iterable[socket.socket], event: int, deadline: float) -> Iterator[socket.socket]:
    """Each of the connections on which an event or an error comes before the deadline, as it comes."""
    waiting = {connection.fileno(): connection for connection in connections}
    poll = select.poll()
    for number in waiting:
        poll.register(number, event)
    while waiting and (left := deadline - time.monotonic()) > 0:
        for number, _ in poll.poll(left * 1000):
            poll.unregister(number)
            yield waiting.pop(number)


def _send(connection: socket.socket) -> bool:
    with suppress(OSError):
        return connection.send(_REQUEST) == len(_REQUEST)
    return False


def _receive(connection: socket.socket) -> bytes:
    with suppress(OSError):
        return connection.recv(len(_GOOD))
    return b""
