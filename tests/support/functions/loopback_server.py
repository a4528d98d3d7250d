"""A small HTTP server on loopback whose answers a test chooses: a gateway, or a faulty function."""

import select
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from control_plane.faas.connection import Address


class Call(BaseHTTPRequestHandler):
    """One POST request, with several ways to answer it. GET is a question for the server's health."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "LoopbackServer"
    body: bytes

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.paths.append(self.path)
        answers = self.server.answers
        answer = answers.popleft() if answers else self.server.otherwise
        answer(self)

    def do_GET(self) -> None:
        self.server.questions += 1
        if self.server.healthy:
            self.reply(200, b"OK")
        else:
            self.wait_for_hang_up()

    def reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def forward(self, address: Address) -> None:
        """Forward the request to the address, and its answer to the caller."""
        connection = HTTPConnection(address.host, address.port, timeout=30)
        try:
            connection.request("POST", "/", self.body)
            answer = connection.getresponse()
            self.reply(answer.status, answer.read())
        finally:
            connection.close()

    def send(self, data: bytes) -> None:
        self.wfile.write(data)

    def send_and_hang_up(self, data: bytes) -> None:
        self.send(data)
        self.close_connection = True

    def wait_for_hang_up(self, seconds: float | None = None) -> bool:
        """Whether the caller closes the connection within `seconds`; None is no limit."""
        poll = select.poll()  # `select` takes no descriptor above 1023.
        poll.register(self.connection, select.POLLIN)
        return bool(poll.poll(None if seconds is None else seconds * 1000))

    def log_message(self, *_: Any) -> None:
        """Log nothing: tests read `paths`."""


Responder = Callable[[Call], None]


class LoopbackServer(ThreadingHTTPServer):
    """Answers with each of `answers` once, then always with `otherwise`."""

    healthy = True
    """Whether it answers questions for its health."""

    def __init__(self, otherwise: Responder, *answers: Responder, host: str = "127.0.0.1") -> None:
        super().__init__((host, 0), Call)
        self.questions = 0
        self.otherwise = otherwise
        self.answers = deque(answers)
        self.paths: list[str] = []
        self.connections = 0
        self.closed = 0
        """Connections that were closed again."""

    @property
    def address(self) -> Address:
        return Address(str(self.server_address[0]), self.server_port)

    def get_request(self) -> Any:
        self.connections += 1
        return super().get_request()

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        self.closed += 1

    def handle_error(self, *_: Any) -> None:
        """Ignore errors: in some tests the caller closes the connection early."""


@contextmanager
def loopback_server(otherwise: Responder, *answers: Responder) -> Iterator[LoopbackServer]:
    """Run a server until the context ends."""
    with running(LoopbackServer(otherwise, *answers)) as server:
        yield server


@contextmanager
def running(server: LoopbackServer) -> Iterator[LoopbackServer]:
    """Run a server until the context ends."""
    with server:
        serving = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        try:
            yield server
        finally:
            server.shutdown()
            serving.join()


def gateway(routes: Mapping[str, Address]) -> Responder:
    """Forwards `/function/<name>` to the function's address, as a gateway does; other paths get 404."""

    def answer(call: Call) -> None:
        address = routes.get(call.path.removeprefix("/function/"))
        if address is None:
            call.reply(404, b"error finding function\n")
        else:
            call.forward(address)

    return answer
