"""HTTP/1.1 connections for invocations, used by one thread. None of their operations waits.

A layer needs the answers of all its functions before it can go on. So the engine's thread sends to each of
them and then reads each answer: no event loop, no other thread, two system calls per invocation.
"""

import contextlib
import errno
import os
import select
import socket
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import ip_address
from typing import NamedTuple

import httptools

from control_plane.faas.wire.response_reader import HeaderTooLarge, HttpResponse, ResponseReader
from functions.contract.secret import CALLER_HEADER
from functions.host.sockets import JOINED_BYTES, RECEIVE_BUFFER_BYTES

REQUEST_HEADS = 4096
"""The headers of requests that are kept."""
_LINE_END = "\r\n"
_MAX_PARTS = 64
"""The most buffers for one system call; Linux takes 1024."""
_SENSES_LOSS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1500),
)
"""Options that break a connection some two seconds after its peer has gone without a word.

A container's network is removed before its process ends, so that nothing resets its connections.
"""

_SYN_SENT = 2
"""Linux's number for the state of a connection that the peer has not accepted yet."""


class ConnectionLost(Exception):
    """The peer cannot be reached, closed the connection, or sent something other than HTTP."""


class Address(NamedTuple):
    """The host and port at which a function or a gateway listens."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether the address means the machine that connects to it."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Connection:
    """Sends one request at a time and takes its response. Waiting is up to the caller, by `ready`."""

    def __init__(self, address: Address, senses_loss: bool) -> None:
        """Begin to connect. Raises `ConnectionLost`.

        With `senses_loss`, the connection breaks soon after its peer has vanished. That is for peers nearby:
        a distant one may be out of reach for longer.
        """
        self.address = address
        self._senses_loss = senses_loss
        self._buffer = memoryview(bytearray(RECEIVE_BUFFER_BYTES))
        self._reader: ResponseReader | None = None
        self._max_answer_bytes = 0
        self._received = b""
        """The first bytes of an answer that were received elsewhere."""
        self._unsent: list[bytes | memoryview] = []
        self.reusable = False
        """Whether another request may follow the last response."""
        try:
            self._places = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:  # UnicodeError: the host is not a valid name.
            raise ConnectionLost(f"cannot be found: {error}") from error
        self._connect()

    def send(
        self,
        target: str,
        content_type: str,
        body: Sequence[bytes | memoryview],
        max_answer_bytes: int,
        proof: str = "",
    ) -> None:
        """POST `body` to `target`, as far as the network takes it now; `push` sends the rest.

        The body of a good answer has `max_answer_bytes` at most. `proof` says to a function that the caller
        has the shared secret. Raises `ConnectionLost`.
        """
        parts = request(target, self.address, content_type, body, proof)
        is_short = sum(map(len, parts)) < JOINED_BYTES
        self.began([b"".join(parts)] if is_short else [part for part in parts if len(part)], max_answer_bytes)
        self.push()

    def began(self, unsent: list[bytes | memoryview], max_answer_bytes: int) -> None:
        """Take over a request that has been sent up to the last parts; `push` sends these."""
        self.reusable = False
        self._reader = None
        self._max_answer_bytes = max_answer_bytes
        self._unsent = unsent

    def received(self, data: bytes) -> None:
        """Take over an answer whose first bytes have been received already; `read` reads the rest."""
        self._received = data

    def answered(self) -> None:
        """The whole answer has been received on this connection."""
        self.reusable = True

    @property
    def sending(self) -> bool:
        """Whether a part of the request is still to be sent."""
        return bool(self._unsent)

    def push(self) -> None:
        """Send as much more as the network takes now. Raises `ConnectionLost`."""
        try:
            while self._unsent:
                self._sent(self._socket.sendmsg(self._unsent[:_MAX_PARTS]))
        except BlockingIOError:
            pass
        except OSError as error:
            if not self._places:
                raise ConnectionLost(f"cannot be reached: {error.strerror}") from error
            self._socket.close()
            self._connect()
            self.push()

    def read(self) -> HttpResponse | None:
        """Take what has arrived; returns the response to the last request once it is complete.

        Raises `ConnectionLost`.
        """
        if self._reader is None:
            self._reader = ResponseReader(self._max_answer_bytes)
        reader = self._reader
        try:
            if self._received:
                self._received, data = b"", self._received
                reader.take(memoryview(data))
            while reader.response is None:
                place = reader.place(self._buffer)
                size = self._socket.recv_into(place)
                if size == 0:
                    raise ConnectionLost("hung up before the end of its answer")
                reader.take(place[:size])
        except BlockingIOError:
            return None
        except OSError as error:
            raise ConnectionLost(f"hung up: {error.strerror}") from error
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, HeaderTooLarge) as error:
            raise ConnectionLost(f"does not speak HTTP: {error!r}") from error
        self.reusable = reader.keep_alive and not self._unsent
        self._forget_reader()
        return reader.response

    @property
    def readable(self) -> bool:
        """Whether bytes have arrived, or the peer has closed the connection."""
        return bool(ready([self], 0))

    @property
    def is_losing(self) -> bool:
        """Whether nothing confirms what was sent: the peer's machine or network may have gone."""
        state, _, retransmits = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 3)
        return state == _SYN_SENT or retransmits > 0

    def fileno(self) -> int:
        """The socket's number."""
        return self._socket.fileno()

    def abort(self) -> None:
        """From another thread: make the next `push` or `read` raise `ConnectionLost`, and wake `ready`."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket."""
        self._forget_reader()
        self._socket.close()

    def _connect(self) -> None:
        """Begin to connect to the first place that does not refuse at once. Raises `ConnectionLost`."""
        code = errno.EHOSTUNREACH
        while self._places:
            family, kind, protocol, _, place = self._places.pop(0)
            self._socket = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for option in _SENSES_LOSS if self._senses_loss else ():
                self._socket.setsockopt(*option)
            code = self._socket.connect_ex(place)
            if code in (0, errno.EINPROGRESS):
                return
            self._socket.close()
        raise ConnectionLost(f"cannot be reached: {os.strerror(code)}")

    def _sent(self, nbytes: int) -> None:
        """Take what was sent off the unsent parts."""
        self._places = []  # It is connected: there is no need for another place.
        while self._unsent and nbytes >= len(self._unsent[0]):
            nbytes -= len(self._unsent.pop(0))
        if nbytes:
            self._unsent[0] = memoryview(self._unsent[0])[nbytes:]

    def _forget_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None


def request(
    target: str, address: Address, content_type: str, body: Sequence[bytes | memoryview], proof: str
) -> list[bytes | memoryview]:
    """The buffers of a request that POSTs `body` to an address; see `Connection.send`."""
    return [_head(target, address, content_type, sum(map(len, body)), proof), *body]


def last_bytes(parts: Sequence[bytes | memoryview], nbytes: int) -> list[bytes | memoryview]:
    """The last `nbytes` bytes of a request's parts."""
    last: list[bytes | memoryview] = []
    for part in reversed(parts):
        if nbytes <= 0:
            break
        last.insert(0, memoryview(part)[-nbytes:] if nbytes < len(part) else part)
        nbytes -= len(part)
    return last


@lru_cache(REQUEST_HEADS)
def _head(target: str, address: Address, content_type: str, length: int, proof: str) -> bytes:
    return (
        f"POST {target} HTTP/1.1\r\nHost: {address}\r\n"
        f"{f'{CALLER_HEADER}: {proof}{_LINE_END}' if proof else ''}"
        f"Content-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def ready(connections: Sequence[Connection], seconds: float) -> list[Connection]:
    """Those on which `push` or `read` has something to do now; waits up to `seconds` for the first."""
    by_number = {connection.fileno(): connection for connection in connections}
    poll = select.poll()
    for number, connection in by_number.items():
        poll.register(number, select.POLLOUT if connection.sending else select.POLLIN)
    return [by_number[number] for number, _ in poll.poll(max(seconds, 0) * 1000)]
