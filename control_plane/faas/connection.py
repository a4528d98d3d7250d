"""One HTTP/1.1 connection for invocations, blocking, used by one thread.

A layer cannot go on before all its functions have answered, so the engine's thread sends to each of them
and then reads each answer: no event loop, no other thread, two system calls per invocation.
"""

import contextlib
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

import httptools

from functions.host.sockets import send_all

MAX_ANSWER_BYTES = 1 << 30
RECEIVE_BUFFER_BYTES = 16384
"""For the beginning of an answer: most of a small one, and little of a large one, which is copied."""


class ConnectionLost(Exception):
    """The peer could not be reached, hung up, or spoke something other than HTTP."""


@dataclass(frozen=True)
class Address:
    """Where a function or a gateway listens."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Read host:port; raises `ValueError`."""
        host, _, port = text.rpartition(":")
        if not host or not 0 < int(port) < 65536:
            raise ValueError(f"not an address: {text!r}")
        return cls(host, int(port))

    @property
    def is_loopback(self) -> bool:
        """Whether it leads to the machine that it is used on."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Answer:
    """Status and body of an answer. The body is writable: tensors that are views of it are, too."""

    status: int
    body: bytearray


class _AnswerReader:
    """Collects one answer; httptools calls its on_* methods.

    What is left of a body after its first bytes goes straight to its place, past the parser.
    """

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._status = 0
        self._length: int | None = None
        """Of the body, once the header has told."""
        self._body = bytearray()
        self._filled = 0
        self._straight = False
        self.answer: Answer | None = None
        self.keep_alive = False

    def place(self, buffer: memoryview) -> memoryview:
        """Where the next bytes are to be put: somewhere in the buffer, or where they belong."""
        self._straight = self._status >= 200 and self._length is not None
        return memoryview(self._body)[self._filled :] if self._straight else buffer

    def take(self, received: memoryview) -> None:
        """Those bytes have come. Raises an error of httptools."""
        if not self._straight:
            self._parser.feed_data(received)
            return
        self._filled += len(received)
        if self._filled == self._length:
            self.answer = Answer(self._status, self._body)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-length":
            self._length = int(value)

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()
        self.keep_alive = self._parser.should_keep_alive()
        if self._length is not None:
            self._limit(self._length)
            self._body = bytearray(self._length)

    def on_body(self, body: bytes) -> None:
        end = self._filled + len(body)
        self._limit(end)
        self._body[self._filled : end] = body
        self._filled = end

    def on_message_complete(self) -> None:
        # 100 Continue is a message of its own, before the answer.
        if self._status >= 200:
            self.answer = Answer(self._status, self._body)

    @staticmethod
    def _limit(nbytes: int) -> None:
        if nbytes > MAX_ANSWER_BYTES:
            raise ConnectionLost(f"an answer of more than {MAX_ANSWER_BYTES} bytes")


class Connection:
    """Sends one request and receives its answer, again and again. Every wait ends by the deadline."""

    def __init__(self, address: Address, deadline: float) -> None:
        """Connect by `deadline`, of time.monotonic(). Raises `ConnectionLost`."""
        self.address = address
        self._buffer = memoryview(bytearray(RECEIVE_BUFFER_BYTES))
        self.reusable = False
        try:
            self._socket = socket.create_connection((address.host, address.port), _left(deadline))
        except (OSError, UnicodeError) as error:  # the latter for a host that can be no name
            raise ConnectionLost(f"cannot connect to {address}: {error}") from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(
        self, target: str, content_type: str, body: Sequence[bytes | memoryview], deadline: float
    ) -> None:
        """POST `body` to `target`. Raises `ConnectionLost`."""
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

    def receive(self, deadline: float) -> Answer:
        """The answer to what was sent last. Raises `ConnectionLost`, or `TimeoutError` at the deadline."""
        reader = _AnswerReader()
        while reader.answer is None:
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
        return reader.answer

    @property
    def readable(self) -> bool:
        """Whether something has come, or the peer has hung up.

        Of a connection that waits for no answer, that means that it cannot be used any more.
        """
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    def abort(self) -> None:
        """From another thread: make a wait in `send` or `receive` end with `ConnectionLost`."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("deadline")
    return left
