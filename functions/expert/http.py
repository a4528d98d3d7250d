"""A small HTTP/1.1 server: one thread per connection, which reads, handles and answers.

Its clients are a handful of control planes and a gateway, each holding connections open. A thread that
does all of a call's work needs no event loop and hands nothing over to another thread, which is most of
a small call's latency. When all places for connections are taken, the one that has been silent longest
makes room: nobody can keep health checks out by holding connections open.
"""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus

import httptools

from functions.host.sockets import send_all
from functions.host.threads import ClientCore

IDLE_SECONDS = 75.0
"""A connection without a call is closed after this; longer than a gateway keeps its own."""
RECEIVE_SECONDS = 30.0
"""A call that has begun to arrive has to be complete after this."""
MAX_CONNECTIONS = 128
MAX_HEADER_BYTES = 65536
RECEIVE_BUFFER_BYTES = 16384
"""For the beginning of a call: most of a small one, and little of a large one, which is copied."""
MAX_STRAIGHT_BYTES = 8 << 20
"""A body that has been announced has its memory at once; a larger one gets it as it comes."""
SHORTAGE_PAUSE_SECONDS = 0.05
"""Before trying again where the system had no room for a connection or a thread."""


@dataclass
class Request:
    """One call. `local_address` is the host:port at which this server was reached for it."""

    method: str
    path: str
    body: bytearray
    local_address: str


@dataclass
class Response:
    """What the handler answers. `body` are buffers that are sent one after the other."""

    status: int = 200
    body: list[bytes | memoryview] = field(default_factory=list)
    content_type: str = "text/plain; charset=utf-8"
    after: Callable[[], None] | None = None
    """Done once the answer is sent, when nobody waits for it."""

    @classmethod
    def error(cls, status: int, code: str, message: str) -> "Response":
        """The contract's JSON error."""
        body = json.dumps({"error": {"code": code, "message": message}}).encode()
        return cls(status, [body], "application/json")

    def encode(self, keep_alive: bool, without_body: bool = False) -> list[bytes | memoryview]:
        """The answer's bytes, in order; one to a HEAD tells of a body that does not follow."""
        length = sum(len(part) for part in self.body)
        head = (
            f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}\r\n"
            f"Content-Type: {self.content_type}\r\nContent-Length: {length}\r\n"
            f"Connection: {'keep-alive' if keep_alive else 'close'}\r\n\r\n"
        )
        return [head.encode(), *([] if without_body else self.body)]


Handler = Callable[[Request], Response]


class _TooLarge(Exception):
    """The call's body or header is over the limit."""


class _RequestReader:
    """Turns a connection's bytes into requests; httptools calls its on_* methods.

    What is left of a body after its first bytes goes straight to its place, past the parser.
    """

    def __init__(self, max_body_bytes: int, local_address: str, continue_: Callable[[], None]) -> None:
        self._max_body_bytes = max_body_bytes
        self._local_address = local_address
        self._continue = continue_
        self._method = ""
        self._keep_alive = self._upgrade = self._straight = False
        self.complete: list[tuple[Request, bool]] = []
        self._start_anew()

    def place(self, buffer: memoryview) -> memoryview:
        """Where the next bytes are to be put: somewhere in the buffer, or where they belong."""
        self._straight = self._in_body and 0 < self._length <= MAX_STRAIGHT_BYTES and not self._upgrade
        return memoryview(self._body)[self._filled :] if self._straight else buffer

    def feed(self, data: memoryview) -> None:
        """Raises `_TooLarge`, or ValueError or an error of httptools for bytes that are not HTTP/1.1."""
        if self._straight:
            self._filled += len(data)
            if self._filled == self._length:
                self._finish()
                # The parser still waits for the body.
                self._start_anew()
            return
        self._fed_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            raise error.__context__ or error from None
        # The parser gathers a header until it is complete, however long that takes.
        if not self._in_body and self._fed_bytes > MAX_HEADER_BYTES:
            raise _TooLarge

    @property
    def started(self) -> bool:
        """Whether a call has begun to arrive that is not complete."""
        return self._fed_bytes > 0

    def _start_anew(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._reset()

    def _reset(self) -> None:
        self._path = b""
        self._length = 0
        """Of the body, as far as the header has told."""
        self._body = bytearray()
        self._filled = 0
        self._fed_bytes = 0
        self._header_bytes = 0
        self._in_body = self._straight = self._upgrade = False

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_headers_complete(self) -> None:
        self._in_body = True
        self._method = self._parser.get_method().decode()
        self._keep_alive = self._parser.should_keep_alive()
        # The parser leaves the body of such a call unread, and is about to raise HttpParserUpgrade.
        self._upgrade = self._parser.should_upgrade()
        if self._length <= MAX_STRAIGHT_BYTES:
            self._body = bytearray(self._length)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > MAX_HEADER_BYTES:
            raise _TooLarge
        if name.lower() == b"content-length":
            self._length = int(value)
            if self._length > self._max_body_bytes:
                raise _TooLarge
        if name.lower() == b"expect" and value.lower() == b"100-continue":
            self._continue()

    def on_body(self, body: bytes) -> None:
        end = self._filled + len(body)
        if end > self._max_body_bytes:
            raise _TooLarge
        self._body[self._filled : end] = body
        self._filled = end

    def on_message_complete(self) -> None:
        if not self._upgrade:
            self._finish()
            self._reset()

    def _finish(self) -> None:
        path = self._path.decode("latin-1").partition("?")[0]
        request = Request(self._method, path, self._body, self._local_address)
        self.complete.append((request, self._keep_alive))


class HttpServer:
    """Serves `handler` on a listening socket until `stop` is called from another thread."""

    def __init__(self, listener: socket.socket, handler: Handler, max_body_bytes: int) -> None:
        self._listener = listener
        self._handler = handler
        self._max_body_bytes = max_body_bytes
        self._places = threading.Semaphore(MAX_CONNECTIONS)
        self._silent: dict[socket.socket, None] = {}
        """Connections without a call, the one that has been so longest first."""
        self._idle = threading.Condition()
        self._busy = 0
        self._stopping = False
        self.leaves_client_core = False
        """Whether a call is worked on elsewhere than on the core that it was sent from."""

    def serve(self, drain_seconds: float) -> None:
        """Accept until `stop`, then give the calls in flight `drain_seconds` to be answered."""
        while not self._stopping:
            self._take_place()
            try:
                connection, _ = self._listener.accept()
                self._start(connection)
            except OSError:
                self._places.release()
                if not self._stopping:
                    time.sleep(SHORTAGE_PAUSE_SECONDS)
        with self._idle:
            self._idle.wait_for(lambda: self._busy == 0, drain_seconds)

    def _take_place(self) -> None:
        """Wait for a place for one more connection."""
        if self._places.acquire(blocking=False):
            return
        with self._idle:
            longest = next(iter(self._silent), None)
        if longest is not None:
            with contextlib.suppress(OSError):
                longest.shutdown(socket.SHUT_RDWR)
        self._places.acquire()

    def _start(self, connection: socket.socket) -> None:
        """Serve a connection on a thread of its own. Raises OSError when there can be none."""
        try:
            threading.Thread(target=self._serve_connection, args=(connection,), daemon=True).start()
        except RuntimeError as error:
            connection.close()
            raise OSError(str(error)) from error

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
        client_core = ClientCore(connection)
        deadline = 0.0
        while True:
            place = reader.place(buffer)
            if reader.started:
                connection.settimeout(max(deadline - time.monotonic(), 0.001))
                size = connection.recv_into(place)
            else:
                size = self._wait_for_call(connection, place)
                deadline = time.monotonic() + RECEIVE_SECONDS
            if size == 0:
                return
            if self.leaves_client_core:
                client_core.keep_off()
            refusal = self._feed(reader, place[:size])
            # What was complete before the refused bytes is still due an answer.
            while reader.complete:
                if not self._answer(connection, *reader.complete.pop(0)):
                    return
            if refusal is not None:
                self._refuse(connection, refusal)
                return

    def _wait_for_call(self, connection: socket.socket, buffer: memoryview) -> int:
        """The first bytes of the next call; meanwhile the connection may have to make room for another."""
        connection.settimeout(IDLE_SECONDS)
        with self._idle:
            self._silent[connection] = None
        try:
            return connection.recv_into(buffer)
        finally:
            with self._idle:
                del self._silent[connection]

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
            send_all(connection, response.encode(keep_alive, without_body=request.method == "HEAD"))
            if response.after is not None:
                response.after()
            return keep_alive
        finally:
            with self._idle:
                self._busy -= 1
                self._idle.notify_all()

    @staticmethod
    def _refuse(connection: socket.socket, refusal: Response) -> None:
        send_all(connection, refusal.encode(keep_alive=False))
        # A client that is still sending would see a reset instead of the answer: take what comes, briefly.
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(1.0)
        while connection.recv(RECEIVE_BUFFER_BYTES):
            pass
