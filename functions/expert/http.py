"""A small HTTP/1.1 server: one thread per connection, which reads, handles and answers.

Its clients are a handful of control planes and a gateway, each holding connections open. A thread that
does all of a call's work needs no event loop and hands nothing over to another thread, which is most of
a small call's latency; health checks have their own connections, so compute never delays them.
"""

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus

import httptools

IDLE_SECONDS = 75.0
"""A connection without a call is closed after this; longer than a gateway keeps its own."""
RECEIVE_SECONDS = 30.0
"""The longest wait for more of a call that has begun to arrive."""
MAX_CONNECTIONS = 128
MAX_HEADER_BYTES = 65536
RECEIVE_BUFFER_BYTES = 262144


@dataclass
class Request:
    """One call. `local_address` is the host:port at which this server was reached for it."""

    method: str
    path: str
    body: bytes
    local_address: str


@dataclass
class Response:
    """What the handler answers. `body` are buffers that are sent one after the other."""

    status: int = 200
    body: list[bytes | memoryview] = field(default_factory=list)
    content_type: str = "text/plain; charset=utf-8"

    @classmethod
    def error(cls, status: int, code: str, message: str) -> "Response":
        """The contract's JSON error."""
        body = json.dumps({"error": {"code": code, "message": message}}).encode()
        return cls(status, [body], "application/json")

    def encode(self, keep_alive: bool) -> bytes:
        length = sum(len(part) for part in self.body)
        head = (
            f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}\r\n"
            f"Content-Type: {self.content_type}\r\nContent-Length: {length}\r\n"
            f"Connection: {'keep-alive' if keep_alive else 'close'}\r\n\r\n"
        )
        return b"".join([head.encode(), *self.body])


Handler = Callable[[Request], Response]


class _TooLarge(Exception):
    """The call's body or header is over the limit."""


class _RequestReader:
    """Turns a connection's bytes into requests; httptools calls its on_* methods."""

    def __init__(self, max_body_bytes: int, local_address: str, continue_: Callable[[], None]) -> None:
        self._max_body_bytes = max_body_bytes
        self._local_address = local_address
        self._continue = continue_
        self._parser = httptools.HttpRequestParser(self)
        self._reset()
        self.complete: list[tuple[Request, bool]] = []

    def feed(self, data: memoryview) -> None:
        """Raises `_TooLarge`, or ValueError or an error of httptools for bytes that are not HTTP/1.1."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            raise error.__context__ or error from None

    @property
    def started(self) -> bool:
        """Whether a call has begun to arrive that is not complete."""
        return self._header_bytes > 0

    def _reset(self) -> None:
        self._path = b""
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._header_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._path += url
        self._count_header(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_header(len(name) + len(value))
        if name.lower() == b"content-length" and int(value) > self._max_body_bytes:
            raise _TooLarge
        if name.lower() == b"expect" and value.lower() == b"100-continue":
            self._continue()

    def _count_header(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:
            raise _TooLarge

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes > self._max_body_bytes:
            raise _TooLarge
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._parser.should_upgrade():
            # The parser leaves the body of such a call unread, and is about to raise HttpParserUpgrade.
            return
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        path = self._path.decode("latin-1").partition("?")[0]
        request = Request(self._parser.get_method().decode(), path, body, self._local_address)
        self.complete.append((request, self._parser.should_keep_alive()))
        self._reset()


class HttpServer:
    """Serves `handler` on a listening socket until `stop` is called from another thread."""

    def __init__(self, listener: socket.socket, handler: Handler, max_body_bytes: int) -> None:
        self._listener = listener
        self._handler = handler
        self._max_body_bytes = max_body_bytes
        self._places = threading.Semaphore(MAX_CONNECTIONS)
        self._idle = threading.Condition()
        self._busy = 0
        self._stopping = False

    def serve(self, drain_seconds: float) -> None:
        """Accept until `stop`, then give the calls in flight `drain_seconds` to be answered."""
        while not self._stopping:
            self._places.acquire()
            try:
                connection, _ = self._listener.accept()
            except OSError:
                self._places.release()
                continue
            threading.Thread(target=self._serve_connection, args=(connection,), daemon=True).start()
        with self._idle:
            self._idle.wait_for(lambda: self._busy == 0, drain_seconds)

    def stop(self) -> None:
        """Refuse new connections; `serve` returns when the calls in flight are answered."""
        self._stopping = True
        # Whatever `serve` waits for: a place for a connection, or one to accept, which only shutdown wakes.
        self._places.release()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve_connection(self, connection: socket.socket) -> None:
        try:
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._answer_all(connection)
        except OSError:
            pass  # The client went away, or was silent for too long: there is nobody to tell.
        finally:
            self._places.release()

    def _answer_all(self, connection: socket.socket) -> None:
        host, port = connection.getsockname()[:2]
        reader = _RequestReader(
            self._max_body_bytes,
            f"{host}:{port}",
            lambda: connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n"),
        )
        buffer = memoryview(bytearray(RECEIVE_BUFFER_BYTES))
        while True:
            connection.settimeout(RECEIVE_SECONDS if reader.started else IDLE_SECONDS)
            size = connection.recv_into(buffer)
            if size == 0:
                return
            refusal = self._feed(reader, buffer[:size])
            # What was complete before the refused bytes is still due an answer.
            while reader.complete:
                if not self._answer(connection, *reader.complete.pop(0)):
                    return
            if refusal is not None:
                self._refuse(connection, refusal)
                return

    def _feed(self, reader: _RequestReader, data: memoryview) -> Response | None:
        """Take in what has arrived; returns the answer to bytes that this server does not take."""
        try:
            reader.feed(data)
        except _TooLarge:
            return Response.error(413, "too_large", f"more than {self._max_body_bytes} bytes")
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, ValueError) as error:
            return Response.error(400, "bad_request", f"not HTTP/1.1: {error}")
        return None

    def _answer(self, connection: socket.socket, request: Request, keep_alive: bool) -> bool:
        """Answer one call; returns whether the connection stays open."""
        with self._idle:
            self._busy += 1
        try:
            response = self._handler(request)
            keep_alive = keep_alive and not self._stopping
            connection.sendall(response.encode(keep_alive))
            return keep_alive
        finally:
            with self._idle:
                self._busy -= 1
                self._idle.notify_all()

    @staticmethod
    def _refuse(connection: socket.socket, refusal: Response) -> None:
        connection.sendall(refusal.encode(keep_alive=False))
        # A client that is still sending would see a reset instead of the answer: take what comes, briefly.
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(1.0)
        while connection.recv(RECEIVE_BUFFER_BYTES):
            pass
