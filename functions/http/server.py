"""A small HTTP/1.1 server with one thread per connection, which reads, handles and answers its requests.

Its clients are a handful of control planes and a gateway, each of which holds connections open. A thread that
does all of a call's work needs no event loop and hands nothing over to another thread; such hand-overs are
most of a small call's latency. When there are too many connections, the one that has waited longest for its
client is closed: nobody can keep health checks out by holding connections open.

Calls may be answered without Python, too: `fast_path` waits for each next call of a connection, answers those
that it can, and hands the first bytes of others over to Python.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Protocol

import httptools

from functions.fast_path.shared import ClientState
from functions.host.sockets import RECEIVE_BUFFER_BYTES, MessageTooLarge, send_all
from functions.host.threads import ClientCore
from functions.http.connections import Client, Connections
from functions.http.messages import FunctionRequest, FunctionResponse, RequestReader, TooManyCalls

IDLE_SECONDS = 75.0
"""A connection is closed after so long without a call; longer than gateways keep theirs open."""
RECEIVE_SECONDS = 30.0
"""The longest time between a call's first bytes and its last."""
SEND_SECONDS = 30.0
"""The longest time that a client may take to read an answer."""
REFUSED_SECONDS = 1.0
"""How long the rest of a refused call is received."""
MAX_CONNECTIONS = 128
MAX_BODIES = 2
"""The bodies of all calls take no more memory than so many of the largest bodies."""
SHORTAGE_PAUSE_SECONDS = 0.05
"""The pause before another try when the system has no room for a connection or a thread."""

Handler = Callable[[FunctionRequest], FunctionResponse]


class FastPath(Protocol):
    """Answers calls without Python."""

    def serve(
        self,
        fd: int,
        client: ClientState,
        address: str,
        leaves_client_core: bool,
        idle_seconds: float,
        receive_seconds: float,
        send_seconds: float,
        /,
    ) -> bytes | None:
        """The first bytes of a call that Python has to answer; None when the connection has ended."""


class HttpServer:
    """Serves `handler` on a listening socket until another thread calls `stop`."""

    def __init__(self, listener: socket.socket, handler: Handler, max_body_bytes: int) -> None:
        self._listener = listener
        self._handler = handler
        self._max_body_bytes = max_body_bytes
        self.connections = Connections(MAX_CONNECTIONS, MAX_BODIES * max_body_bytes)
        self.fast_path: FastPath | None = None
        self.leaves_client_core = False
        """Whether calls are handled on other cores than the one that their client sends from."""

    def serve(self, drain_seconds: float) -> None:
        """Accept connections until `stop`, then wait up to `drain_seconds` for the calls in flight."""
        while not self.connections.stopping:
            try:
                connection, _ = self._listener.accept()
                self._start(Client(connection))
            except OSError:
                if not self.connections.stopping:
                    time.sleep(SHORTAGE_PAUSE_SECONDS)
        self.connections.drain(drain_seconds)

    def _start(self, client: Client) -> None:
        """Start the connection's thread. Raises OSError when the system has no room for one."""
        self.connections.add(client)
        try:
            threading.Thread(target=self._serve_connection, args=(client,), daemon=True).start()
        except RuntimeError as error:
            self.connections.remove(client)
            client.socket.close()
            raise OSError(str(error)) from error

    def stop(self) -> None:
        """Refuse new connections; `serve` returns when the calls in flight are answered."""
        # `serve` waits for a place, or in accept, which only shutdown ends.
        self.connections.close()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve_connection(self, client: Client) -> None:
        with client.socket:
            try:
                self._serve_client(client)
            except OSError:
                pass  # The client went away, took too long, or had to give way.
            finally:
                self.connections.remove(client)

    def _serve_client(self, client: Client) -> None:
        connection = client.socket
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        host, port = connection.getsockname()[:2]
        reader = RequestReader(
            self._max_body_bytes,
            f"{host}:{port}",
            lambda: connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n"),
        )
        with contextlib.closing(reader):
            self._answer_all(client, reader)

    def _answer_all(self, client: Client, reader: RequestReader) -> None:
        connection = client.socket
        buffer = memoryview(bytearray(RECEIVE_BUFFER_BYTES))
        client_core = ClientCore(connection)
        deadline = 0.0
        while True:
            place = reader.place(buffer)
            nbytes = reader.body_nbytes
            if nbytes != client.state.nbytes and not self.connections.hold(client, nbytes):
                self._refuse(connection, FunctionResponse.error(503, "overloaded", "too many bytes at once"))
                return
            was_started = reader.started
            if self.fast_path is not None and not was_started:
                place = self._serve_fast(self.fast_path, client, reader, client_core)
                size = len(place)
            else:
                connection.settimeout(
                    max(deadline - time.monotonic(), 0.001) if was_started else IDLE_SECONDS
                )
                size = connection.recv_into(place)
                if self.leaves_client_core:
                    client_core.keep_off()
            if size == 0:
                return
            if not was_started:
                deadline = time.monotonic() + RECEIVE_SECONDS
            refusal = self._feed(reader, place[:size])
            # Requests that were complete before the refused bytes are answered first.
            while reader.complete:
                if not self._answer(client, *reader.complete.pop(0)):
                    return
            if refusal is not None:
                self._refuse(connection, refusal)
                return
            if reader.started and not was_started:
                self.connections.begun(client)

    def _serve_fast(
        self, fast_path: FastPath, client: Client, reader: RequestReader, client_core: ClientCore
    ) -> memoryview:
        """The first bytes of the next call that Python has to answer; none when the connection has ended."""
        # It waits by itself, whatever the timeout, on a socket that does not block.
        client.socket.settimeout(IDLE_SECONDS)
        client.state.core = client_core.client
        data = fast_path.serve(
            client.socket.fileno(),
            client.state,
            reader.local_address,
            self.leaves_client_core,
            IDLE_SECONDS,
            RECEIVE_SECONDS,
            SEND_SECONDS,
        )
        client_core.client = client.state.core
        return memoryview(data or b"")

    def _feed(self, reader: RequestReader, data: memoryview) -> FunctionResponse | None:
        """Parse received bytes; returns an error response if this server does not accept them."""
        try:
            reader.feed(data)
        except MessageTooLarge:
            return FunctionResponse.error(413, "too_large", f"more than {self._max_body_bytes} bytes")
        except TooManyCalls:
            return FunctionResponse.error(429, "too_many_requests", "too many calls without their answers")
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, ValueError) as error:
            return FunctionResponse.error(400, "bad_request", f"not HTTP/1.1: {error}")
        return None

    def _answer(self, client: Client, request: FunctionRequest, keep_alive: bool) -> bool:
        """Answer one call; returns whether the connection stays open."""
        if not self.connections.compute(client):
            return False
        response = self._handler(request)
        keep_alive = keep_alive and not self.connections.stopping
        self.connections.send(client)
        client.socket.settimeout(SEND_SECONDS)
        send_all(client.socket, response.encode(keep_alive, without_body=request.method == "HEAD"))
        self.connections.answered(client)
        if response.reported is not None:
            client.state.reported, client.state.reported_at = response.reported, time.monotonic()
        if response.after is not None:
            response.after()
        return keep_alive

    @staticmethod
    def _refuse(connection: socket.socket, refusal: FunctionResponse) -> None:
        connection.settimeout(SEND_SECONDS)
        send_all(connection, refusal.encode(keep_alive=False))
        # A client that is still sending would see a reset in place of the response: read on for a moment.
        connection.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + REFUSED_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left)
            if not connection.recv(RECEIVE_BUFFER_BYTES):
                return
