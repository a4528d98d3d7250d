"""HTTP/1.1 requests and responses as a function receives and sends them."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus

import httptools

from functions.contract.secret import CALLER_HEADER, FUNCTION_HEADER
from functions.host.sockets import BodyBuffer, MessageTooLarge

MAX_HEADER_BYTES = 65536
"""The most bytes of a header, a trailer, or the extensions of a chunk."""
MAX_PIPELINED = 16
"""The most calls of a connection that are received before the first of them is answered."""
_RETRY_STATUSES = frozenset({429, 503})
"""Statuses after which another try may succeed soon."""
_LINE_END = "\r\n"
_CALLER_HEADER = CALLER_HEADER.lower().encode()
_RETRY_AFTER = "Retry-After: 1\r\n"


@dataclass
class FunctionRequest:
    """One call. `local_address` is the host:port at which this server was reached for it."""

    method: str
    path: str
    """The request's path, without the query."""
    body: bytearray
    local_address: str
    caller_proof: str = ""
    """What the caller sends to prove that it has the shared secret."""


@dataclass
class FunctionResponse:
    """The response to one call. `body` is a list of buffers that are sent one after the other."""

    status: int = 200
    body: list[bytes | memoryview] = field(default_factory=list)
    content_type: str = "text/plain; charset=utf-8"
    after: Callable[[], None] | None = None
    """Work to be done once the response has been sent, when nobody waits for it."""
    proof: str = ""
    """What the function sends to prove that it has the shared secret."""
    reported: int | None = None
    """The version of the residency that the body reports, if it does."""

    @classmethod
    def error(cls, status: int, code: str, message: str) -> "FunctionResponse":
        """The contract's JSON error."""
        body = json.dumps({"error": {"code": code, "message": message}}).encode()
        return cls(status, [body], "application/json")

    def encode(self, keep_alive: bool, without_body: bool = False) -> list[bytes | memoryview]:
        """The response as buffers in order; `without_body` for HEAD, whose header has the body's length."""
        length = sum(len(part) for part in self.body)
        head = (
            f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}\r\n"
            f"Content-Type: {self.content_type}\r\nContent-Length: {length}\r\n"
            f"{_RETRY_AFTER if self.status in _RETRY_STATUSES else ''}"
            f"{f'{FUNCTION_HEADER}: {self.proof}{_LINE_END}' if self.proof else ''}"
            f"Connection: {'keep-alive' if keep_alive else 'close'}\r\n\r\n"
        )
        return [head.encode(), *([] if without_body else self.body)]


class TooManyCalls(Exception):
    """A client sends call after call without waiting for answers."""


class RequestReader:
    """Turns a connection's bytes into requests; httptools calls its on_* methods.

    Reader and parser refer to each other. `close` frees both at once, together with a body that was begun.
    """

    def __init__(self, max_body_bytes: int, local_address: str, continue_: Callable[[], None]) -> None:
        """`continue_` is called for a client that waits for 100 Continue before it sends the body."""
        self._max_body_bytes = max_body_bytes
        self.local_address = local_address
        self._continue = continue_
        self._method = ""
        self._keep_alive = False
        self.complete: list[tuple[FunctionRequest, bool]] = []
        """Requests to be answered in order, each with whether the connection stays open after it."""
        self._restart()

    def close(self) -> None:
        """Nothing more is read."""
        del self._parser

    @property
    def body_nbytes(self) -> int:
        """Memory that the body which is being received takes."""
        return len(self._body.data)

    def place(self, buffer: memoryview) -> memoryview:
        """Where to receive the next bytes: in `buffer`, or straight in the body."""
        rest = self._body.rest()
        self._is_direct = rest is not None
        return buffer if rest is None else rest

    def feed(self, data: memoryview) -> None:
        """Take the bytes that were received in `place`.

        Raises `MessageTooLarge` or `TooManyCalls`, or ValueError or an error of httptools for bytes that are
        not HTTP/1.1.
        """
        if self._is_direct:
            if self._body.received(len(data)):
                self._finish()
                # The parser has not seen the whole body and still waits for it.
                self._restart()
            return
        self.started = True
        self._framing_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            raise error.__context__ or error from None
        # The parser collects a header or trailer until it is complete, whatever its length.
        if self._framing_bytes > MAX_HEADER_BYTES:
            raise MessageTooLarge

    def _restart(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._reset()

    def _reset(self) -> None:
        self._path = b""
        self._caller_proof = b""
        self._length = 0
        """The body's length, if the header announces it."""
        self._body = BodyBuffer(self._max_body_bytes)
        self.started = False
        """Whether a request has arrived in part."""
        self._framing_bytes = 0
        """Bytes through the parser since the last ones of a body."""
        self._header_bytes = 0
        self._is_direct = self._upgrade = self._expects_continue = False

    def on_message_begin(self) -> None:
        self.started = True

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > MAX_HEADER_BYTES:
            raise MessageTooLarge
        name = name.lower()
        if name == b"content-length":
            self._length = int(value)
        elif name == _CALLER_HEADER:
            self._caller_proof = value
        elif name == b"expect":
            self._expects_continue = value.lower() == b"100-continue"

    def on_headers_complete(self) -> None:
        self._method = self._parser.get_method().decode()
        self._keep_alive = self._parser.should_keep_alive()
        # The parser leaves the body of such a request unread, and is about to raise HttpParserUpgrade.
        self._upgrade = self._parser.should_upgrade()
        if not self._upgrade:
            self._body.announce(self._length)
            if self._expects_continue:
                self._continue()

    def on_body(self, body: bytes) -> None:
        self._framing_bytes = 0
        self._body.append(body)

    def on_message_complete(self) -> None:
        if not self._upgrade:
            self._finish()
            self._reset()

    def _finish(self) -> None:
        if len(self.complete) == MAX_PIPELINED:
            raise TooManyCalls
        path = self._path.decode("latin-1").partition("?")[0]
        proof = self._caller_proof.decode("latin-1")
        request = FunctionRequest(self._method, path, self._body.data, self.local_address, proof)
        self.complete.append((request, self._keep_alive))
