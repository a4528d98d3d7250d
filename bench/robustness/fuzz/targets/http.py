"""HTTP between the control plane and functions: both readers, and a whole function."""

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

import httptools

from bench.robustness.fuzz.support import model
from bench.robustness.fuzz.support.json_mutation import mutated_message
from bench.robustness.fuzz.support.mutation import mutated
from bench.robustness.fuzz.support.servers import SECONDS, exchange, function_process, statuses
from bench.robustness.fuzz.support.target import Target
from bench.robustness.fuzz.targets.messages import example_answers, example_invocations
from control_plane.errors import FaaSMoEError
from control_plane.faas.connection import Address, Connection, ConnectionLost, ready
from control_plane.faas.wire.response_reader import HttpResponse
from functions.contract.messages import InvocationResult
from functions.contract.process import MAX_BODY_BYTES
from functions.contract.safetensors_codec import WireError
from functions.host.sockets import RECEIVE_BUFFER_BYTES, MessageTooLarge
from functions.http.messages import RequestReader, TooManyCalls


def example_requests(bodies: Sequence[bytes]) -> list[bytes]:
    """Valid requests to a function."""
    lengths = [
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body) for body in bodies
    ]
    return [
        *lengths,
        b"".join(lengths[:2]),
        b"GET /_/health HTTP/1.1\r\nHost: x\r\n\r\nGET /metrics?a=b HTTP/1.1\r\n\r\n",
        b"HEAD /_/ready HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        b'PUT /_/residency HTTP/1.1\r\nContent-Length: 23\r\n\r\n{"limit_bytes": 100000}',
        b"DELETE /_/residency HTTP/1.1\r\nConnection: close\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n3;x\r\nfgh\r\n0\r\nA: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
        b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nabc",
    ]


@contextmanager
def requests(folder: Path) -> Iterator[Target]:
    """A function's request reader, which gets its bytes in pieces as from a socket."""
    examples = example_requests(example_invocations(model.manifest(folder, "bf16")))

    def run(data: bytes) -> bool:
        reader = RequestReader(MAX_BODY_BYTES, "127.0.0.1:1", lambda: None)
        buffer = memoryview(bytearray(RECEIVE_BUFFER_BYTES))
        # The input itself says where it is cut.
        cuts = Random(data)
        position = 0
        try:
            while position < len(data):
                place = reader.place(buffer)
                size = min(len(place), len(data) - position, cuts.choice((1, 7, 100, RECEIVE_BUFFER_BYTES)))
                place[:size] = data[position : position + size]
                reader.feed(place[:size])
                position += size
                reader.complete.clear()
        except (
            MessageTooLarge,
            TooManyCalls,
            httptools.HttpParserError,
            httptools.HttpParserUpgrade,
            ValueError,
        ):
            return False
        finally:
            reader.close()
        return True

    yield Target(lambda random: mutated(random.choice(examples), random, examples), run)


@contextmanager
def function(folder: Path) -> Iterator[Target]:
    """A whole function in its own process, which gets the bytes of a connection."""
    manifest = model.manifest(folder, "bf16")
    messages = example_invocations(manifest)
    examples = example_requests(messages)

    def make(random: Random) -> bytes:
        if random.random() < 0.5:
            return mutated(random.choice(examples), random, examples)
        bodies = [mutated_message(random.choice(messages), random, messages) for _ in range(2)]
        return b"".join(example_requests(bodies)[:2])

    with function_process(folder / "bf16", manifest.blocks[0].function) as address:
        yield Target(make, lambda data: statuses(exchange(address, data, half_close=True))[:1] == [200])


@contextmanager
def responses(folder: Path) -> Iterator[Target]:
    """The control plane's connection, whose peer answers with the input's bytes and hangs up."""
    messages = example_answers()
    examples = [
        *(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body) for body in messages),
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
        b"HTTP/1.0 404 Not Found\r\n\r\nnot found",
        b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
    ]
    with _Peer() as peer:

        def run(data: bytes) -> bool:
            peer.answer = data
            connection = Connection(peer.address, senses_loss=True)
            try:
                connection.send("/", "text/plain", [b"body"], max_answer_bytes=1 << 20)
                InvocationResult.decode(_response(connection).body)
            except (ConnectionLost, FaaSMoEError, WireError):
                return False
            finally:
                connection.close()
            return True

        def make(random: Random) -> bytes:
            if random.random() < 0.5:
                return mutated(random.choice(examples), random, examples)
            body = mutated_message(random.choice(messages), random, messages)
            return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

        yield Target(make, run)


def _response(connection: Connection) -> HttpResponse:
    """The connection's response. Raises `ConnectionLost`, and TimeoutError if none comes."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        for _ in ready([connection], SECONDS):
            if connection.sending:
                connection.push()
            elif response := connection.read():
                return response
    raise TimeoutError


class _Peer:
    """Answers each connection's request with `answer`."""

    def __init__(self) -> None:
        self.answer = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def address(self) -> Address:
        return Address("127.0.0.1", self._listener.getsockname()[1])

    def __enter__(self) -> "_Peer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            # The client hangs up when it has seen enough.
            with connection, suppress(OSError):
                self._reply(connection)

    def _reply(self, connection: socket.socket) -> None:
        received = b""
        while not received.endswith(b"\r\n\r\nbody"):
            piece = connection.recv(RECEIVE_BUFFER_BYTES)
            if not piece:
                return
            received += piece
        connection.sendall(self.answer)
