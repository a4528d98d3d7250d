"""A small HTTP/1.1 server with one thread per connection, which reads, handles and answers its requests.

Its clients are a handful of control planes and a gateway, each of which holds connections open. A thread that
does all of a call's work needs no event loop and hands nothing over to another thread; such hand-overs are
most of a small call's latency. When there are too many connections, the one that has been silent longest is
closed: nobody can keep health checks out by holding connections open.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable

import httptools

from functions.expert.http_messages import FunctionRequest, FunctionResponse, RequestReader
from functions.host.sockets import RECEIVE_BUFFER_BYTES, MessageTooLarge, send_all
from functions.host.threads import ClientCore

IDLE_SECONDS = 75.0
"""A connection is closed after so long without a call; longer than gateways keep theirs open."""
RECEIVE_SECONDS = 30.0
"""The longest time between a call's first bytes and its last."""
MAX_CONNECTIONS = 128
SHORTAGE_PAUSE_SECONDS = 0.05
"""The pause before another try when the system has no room for a connection or a thread."""

Handler = Callable[[FunctionRequest], FunctionResponse]


class HttpServer:
    """Serves `handler` on a listening socket until another thread calls `stop`."""

    def __init__(self, listener: socket.socket, handler: Handler, max_body_bytes: int) -> None:
        self._listener = listener
        self._handler = handler
        self._max_body_bytes = max_body_bytes
        self._places = threading.Semaphore(MAX_CONNECTIONS)
        self._silent: dict[socket.socket, None] = {}
        """Connections without a call; the first has been silent longest."""
        self._idle = threading.Condition()
        self._busy = 0
        """Number of calls in flight."""
        self._stopping = False
        self.leaves_client_core = False
        """Whether calls are handled on other cores than the one that their client sends from."""

    def serve(self, drain_seconds: float) -> None:
        """Accept connections until `stop`, then wait up to `drain_seconds` for the calls in flight."""
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
        """Wait until there may be one more connection; close a silent one if necessary."""
        if self._places.acquire(blocking=False):
            return
        with self._idle:
            longest = next(iter(self._silent), None)
        if longest is not None:
            with contextlib.suppress(OSError):
                longest.shutdown(socket.SHUT_RDWR)
        self._places.acquire()

    def _start(self, connection: socket.socket) -> None:
        """Start the connection's thread. Raises OSError when the system has no room for one."""
        try:
            threading.Thread(target=self._serve_connection, args=(connection,), daemon=True).start()
        except RuntimeError as error:
            connection.close()
            raise OSError(str(error)) from error

    def stop(self) -> None:
        """Refuse new connections; `serve` returns when the calls in flight are answered."""
        self._stopping = True
        # `serve` waits for a place, which the release ends, or in accept, which only shutdown ends.
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
            pass  # The client went away, or was silent for too long.
        finally:
            self._places.release()

    def _answer_all(self, connection: socket.socket) -> None:
        host, port = connection.getsockname()[:2]
        reader = RequestReader(
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
            # Requests that were complete before the refused bytes are answered first.
            while reader.complete:
                if not self._answer(connection, *reader.complete.pop(0)):
                    return
            if refusal is not None:
                self._refuse(connection, refusal)
                return

    def _wait_for_call(self, connection: socket.socket, buffer: memoryview) -> int:
        """Receive the first bytes of the next call; meanwhile the connection counts as silent."""
        connection.settimeout(IDLE_SECONDS)
        with self._idle:
            self._silent[connection] = None
        try:
            return connection.recv_into(buffer)
        finally:
            with self._idle:
                del self._silent[connection]

    def _feed(self, reader: RequestReader, data: memoryview) -> FunctionResponse | None:
        """Parse received bytes; returns an error response if this server does not accept them."""
        try:
            reader.feed(data)
        except MessageTooLarge:
            return FunctionResponse.error(413, "too_large", f"more than {self._max_body_bytes} bytes")
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, ValueError) as error:
            return FunctionResponse.error(400, "bad_request", f"not HTTP/1.1: {error}")
        return None

    def _answer(self, connection: socket.socket, request: FunctionRequest, keep_alive: bool) -> bool:
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
    def _refuse(connection: socket.socket, refusal: FunctionResponse) -> None:
        send_all(connection, refusal.encode(keep_alive=False))
        # A client that is still sending would see a reset in place of the response: read on for a moment.
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(1.0)
        while connection.recv(RECEIVE_BUFFER_BYTES):
            pass
