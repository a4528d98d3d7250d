"""Reads one HTTP/1.1 response. Its peer chooses neither how much memory nor how much work that takes."""

from dataclasses import dataclass

import httptools

from functions.contract.secret import FUNCTION_HEADER

_FUNCTION_HEADER = FUNCTION_HEADER.lower().encode()
MAX_HEADER_BYTES = 65536
"""The most bytes before a response's body, "100 Continue" messages included."""
MAX_ERROR_BYTES = 16384
"""The most bytes that are read of the body of an error."""


@dataclass(frozen=True)
class HttpResponse:
    """Status and body of a response. The body is writable, and so are tensors that are views of it."""

    status: int
    body: bytearray
    truncated: bool = False
    """Whether the body is longer than it may be; `body` has its first bytes, or none."""
    proof: bytes = b""
    """What a function sends to prove that it has the shared secret."""


class HeaderTooLarge(Exception):
    """The header has more than MAX_HEADER_BYTES."""


class ResponseReader:
    """Collects one response. httptools calls the on_* methods.

    The bytes that are received together with the header go through the parser. If the header has the body's
    length, the rest is received straight into the body, which saves copying it and the parser's work.
    """

    def __init__(self, max_body_bytes: int) -> None:
        """`max_body_bytes` is for a response of status 200."""
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._max_body_bytes = max_body_bytes
        self._most_parsed = MAX_HEADER_BYTES
        """The most bytes that may go through the parser."""
        self._parsed = 0
        self._status = 0
        self._length: int | None = None
        """The Content-Length, once it is known."""
        self._proof = b""
        self._body = bytearray()
        self._filled = 0
        self._is_direct = self._is_cut = False
        self._in_body = False
        self.response: HttpResponse | None = None
        """The response, once it is complete."""
        self.keep_alive = False
        """Whether another request may follow the response."""

    def place(self, buffer: memoryview) -> memoryview:
        """Where to receive the next bytes: the buffer, or the unfilled part of the body."""
        return memoryview(self._body)[self._filled :] if self._is_direct else buffer

    def take(self, received: memoryview) -> None:
        """Process bytes that were received into the last `place`.

        Raises `HeaderTooLarge`, or an error of httptools for bytes that are not HTTP/1.1.
        """
        if self._is_direct:
            self._filled += len(received)
            if self._filled == len(self._body):
                self._finish()
            return
        assert self._parser is not None
        self._parsed += len(received)
        self._parser.feed_data(received)
        if self._parsed > self._most_parsed and not self._in_body:
            raise HeaderTooLarge
        if self.response is None and (self._is_cut or self._parsed > self._most_parsed):
            self._is_cut = True
            self._finish()

    def close(self) -> None:
        """Let go of the parser, which refers to the reader: nothing but the collector would free the two."""
        self._parser = None

    def on_message_begin(self) -> None:
        if self.response is not None:
            self.keep_alive = False  # Nobody has asked for a second response.

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-length":
            self._length = int(value)
        elif name == _FUNCTION_HEADER:
            self._proof = value

    def on_headers_complete(self) -> None:
        # A "100 Continue" is a message by itself, which precedes the response.
        if self._parser is None or self.response is not None or self._parser.get_status_code() < 200:
            return
        self._in_body = True
        self._status = self._parser.get_status_code()
        self.keep_alive = self._parser.should_keep_alive()
        if self._status != 200:
            self._max_body_bytes = MAX_ERROR_BYTES
        if self._length is None:
            # Each chunk of a body has a line of its own, which may be longer than the chunk.
            self._most_parsed = self._parsed + 2 * self._max_body_bytes + MAX_HEADER_BYTES
        elif self._length > self._max_body_bytes:
            self._is_cut = True
        elif self._length:
            self._most_parsed = self._parsed + self._length
            self._body = bytearray(self._length)
            self._is_direct = True

    def on_body(self, body: bytes) -> None:
        if self.response is not None:
            return
        end = self._filled + len(body)
        self._is_cut = self._is_cut or end > self._max_body_bytes
        if not self._is_cut:
            self._body[self._filled : end] = body
            self._filled = end

    def on_message_complete(self) -> None:
        if self._in_body and self.response is None and not self._is_cut:
            self._finish()

    def _finish(self) -> None:
        self.keep_alive = self.keep_alive and not self._is_cut
        self.response = HttpResponse(self._status, self._body, self._is_cut, self._proof)
