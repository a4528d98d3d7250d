"""Asks functions whether they are alive: one that computes for long still answers on another connection."""

import select
import socket
import time
from collections.abc import Collection, Set
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
    deadline, connect_deadline = began + seconds, began + min(seconds, connect_seconds)
    found = set()
    poll = select.poll()
    with ExitStack() as stack:
        asked: dict[int, tuple[Endpoint, socket.socket]] = {}
        for address in addresses:
            family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
            connection = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            connection.setblocking(False)
            with suppress(BlockingIOError, OSError):  # A failure to connect shows when it is polled.
                connection.connect(tuple(address))
            asked[connection.fileno()] = address, connection
            poll.register(connection, select.POLLOUT)
        connecting = set(asked)
        while asked:
            now = time.monotonic()
            if now >= connect_deadline:
                for number in connecting:
                    poll.unregister(number)
                    del asked[number]
                connecting.clear()
            left = (connect_deadline if connecting else deadline) - now
            if left <= 0 or not asked:
                break
            for number, event in poll.poll(left * 1000):
                address, connection = asked[number]
                connecting.discard(number)
                if event == select.POLLOUT and _send(connection):
                    poll.modify(number, select.POLLIN)
                    continue
                if event & select.POLLIN and _receive(connection) == _GOOD:
                    found.add(address)
                poll.unregister(number)
                del asked[number]
    return found


def _send(connection: socket.socket) -> bool:
    with suppress(OSError):
        return connection.send(_REQUEST) == len(_REQUEST)
    return False


def _receive(connection: socket.socket) -> bytes:
    with suppress(OSError):
        return connection.recv(len(_GOOD))
    return b""
