"""A blocking HTTP/1.1 connection for invocations, used by one thread.

A layer needs the answers of all its functions before it can go on. So the engine's thread sends to each of
them and then reads each answer: no event loop, no other thread, two system calls per invocation.
"""

import contextlib
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

import httptools

from functions.host.sockets import RECEIVE_BUFFER_BYTES, BodyBuffer, send_all

MAX_RESPONSE_BYTES = 1 << 30


class ConnectionLost(Exception):
    """The peer cannot be reached, closed the connection, or sent something other than HTTP."""


@dataclass(frozen=True)
class Address:
    """The host and port at which a function or a gateway listens."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Parse "host:port". Raises `ValueError`."""
        host, _, port = text.rpartition(":")
        if not host or not 0 < int(port) < 65536:
            raise ValueError(f"not an address: {text!r}")
        return cls(host, int(port))

    @property
    def is_loopback(self) -> bool:
        """Whether the address means the machine that connects to it."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class HttpResponse:
    """Status and body of a response. The body is writable, and so are tensors that are views of it."""

    status: int
    body: bytearray


class _ResponseReader:
    """Collects one response. httptools calls the on_* methods."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._status = 0
        self._length: int | None = None
        """The Content-Length, once it is known."""
        self._body = BodyBuffer(MAX_RESPONSE_BYTES)
        self._is_direct = False
        self.response: HttpResponse | None = None
        """The response, once it is complete."""
        self.keep_alive = False

    def place(self, buffer: memoryview) -> memoryview:
        """Where to receive the next bytes: the buffer, or the unfilled part of the body."""
        rest = self._body.rest()
        self._is_direct = rest is not None
        return buffer if rest is None else rest

    def take(self, received: memoryview) -> None:
        """Process bytes that were received into the last `place`. Raises an error of httptools."""
        if not self._is_direct:
            self._parser.feed_data(received)
        elif self._body.received(len(received)):
            self._finish()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-length":
            self._length = int(value)

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()
        self.keep_alive = self._parser.should_keep_alive()
        # A "100 Continue" is a message by itself, which precedes the response.
        if self._status >= 200 and self._length is not None:
            self._body.announce(self._length)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._status >= 200:
            self._finish()

    def _finish(self) -> None:
        self.response = HttpResponse(self._status, self._body.data)


class Connection:
    """Sends one request at a time and receives its response. No wait is longer than its deadline."""

    def __init__(self, address: Address, deadline: float) -> None:
        """Connect before `deadline`, a time.monotonic(). Raises `ConnectionLost` or `TimeoutError`."""
        self.address = address
        self._buffer = memoryview(bytearray(RECEIVE_BUFFER_BYTES))
        self.reusable = False
        """Whether another request may follow the last response."""
        try:
            self._socket = socket.create_connection((address.host, address.port), _left(deadline))
        except (OSError, UnicodeError) as error:  # UnicodeError: the host is not a valid name.
            raise ConnectionLost(f"cannot connect to {address}: {error}") from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(
        self, target: str, content_type: str, body: Sequence[bytes | memoryview], deadline: float
    ) -> None:
        """POST `body` to `target`. Raises `ConnectionLost` or `TimeoutError`."""
        length = sum(len(part) for part in body)
        head = (
            f"POST {target} HTTP/1.1\r\nHost: {self.address}\r\n"
            f"Content-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n"
        )
        self.reusable = False
        try:
            self._socket.settimeout(_left(deadline))
            send_all(self._socket, [head.encode(), *body])
        except OSError as error:
            raise ConnectionLost(f"{self.address} hung up: {error}") from error

    def receive(self, deadline: float) -> HttpResponse:
        """Read the response to the last request. Raises `ConnectionLost` or `TimeoutError`."""
        reader = _ResponseReader()
        while reader.response is None:
            try:
                self._socket.settimeout(_left(deadline))
                place = reader.place(self._buffer)
                size = self._socket.recv_into(place)
                if size == 0:
                    raise ConnectionLost(f"{self.address} hung up before the end of its answer")
                reader.take(place[:size])
            except TimeoutError:
                raise
            except (OSError, httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
                raise ConnectionLost(f"{self.address}: {error!r}") from error
        self.reusable = reader.keep_alive
        return reader.response

    @property
    def readable(self) -> bool:
        """Whether bytes have arrived, or the peer has closed the connection."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    def abort(self) -> None:
        """From another thread: make a running `send` or `receive` raise `ConnectionLost`."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("deadline")
    return left
