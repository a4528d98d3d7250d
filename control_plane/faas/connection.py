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

MAX_ANSWER_BYTES = 1 << 30
RECEIVE_BUFFER_BYTES = 262144


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
    """Collects one answer; httptools calls its on_* methods."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._size = 0
        self.answer: Answer | None = None
        self.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > MAX_ANSWER_BYTES:
            raise ConnectionLost(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
        self._body.append(body)

    def on_message_complete(self) -> None:
        # 100 Continue is a message of its own, before the answer.
        if self.parser.get_status_code() >= 200:
            self.keep_alive = self.parser.should_keep_alive()
            self.answer = Answer(self.parser.get_status_code(), bytearray().join(self._body))


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
            self._socket.sendall(b"".join([head.encode(), *body]))
        except OSError as error:
            raise ConnectionLost(f"{self.address} hung up: {error}") from error

    def receive(self, deadline: float) -> Answer:
        """The answer to what was sent last. Raises `ConnectionLost`, or `TimeoutError` at the deadline."""
        reader = _AnswerReader()
        while reader.answer is None:
            try:
                self._socket.settimeout(_left(deadline))
                size = self._socket.recv_into(self._buffer)
                if size == 0:
                    raise ConnectionLost(f"{self.address} hung up before the end of its answer")
                reader.parser.feed_data(self._buffer[:size])
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
