"""The function's HTTP server answers requests in order, and refuses the rest with a clear status."""

import os
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from threading import Thread

import pytest

from functions.expert.expert_function import ExpertFunction
from functions.http.messages import FunctionRequest, FunctionResponse
from functions.http.server import MAX_CONNECTIONS, HttpServer
from tests.support.functions.expert_process import ExpertProcess
from tests.support.functions.function_server import function_server
from tests.support.models.tiny_partition import TinyPartition

MAX_BODY_BYTES = 256 << 20
CORES = sorted(os.sched_getaffinity(0))
HEALTH = b"GET /_/health HTTP/1.1\r\n\r\n"


def post(body: bytes, headers: str = "") -> bytes:
    return f"POST / HTTP/1.1\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def chunked(body: bytes, chunk: int) -> bytes:
    """A request with the body in chunks, as a gateway may send it."""
    parts = [body[start : start + chunk] for start in range(0, len(body), chunk)]
    framed = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\n\r\n"


def exchange(address: tuple[str, int], *pieces: bytes) -> bytes:
    """Send the pieces one by one; returns all that the server sends until it closes the connection."""
    with socket.create_connection(address, timeout=30) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            client.sendall(piece)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65536), b""))


def statuses(answers: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", answers)]


@pytest.fixture(scope="module", params=["c", "python"])
def address(
    request: pytest.FixtureRequest, function: ExpertProcess, tiny: TinyPartition
) -> Iterator[tuple[str, int]]:
    """A function whose calls C sees first, if it is compiled, and one without C."""
    if request.param == "c":
        yield function.address.host, function.address.port
    else:
        with function_server(tiny, in_c=False) as running:
            yield running.address


@pytest.fixture(scope="module")
def message(function: ExpertProcess, tiny: TinyPartition) -> bytes:
    return b"".join(tiny.invocation(function.name).encode())


@pytest.fixture(scope="module")
def output(function: ExpertProcess, tiny: TinyPartition) -> bytes:
    """The bytes of the result's tensor, with which every good response ends."""
    invocation = tiny.invocation(function.name)
    result = function.invoke(invocation)
    tiny.check(invocation, result.output)
    return result.output.tobytes()


@pytest.mark.parametrize("chunk", [1, 100, 1 << 20])
def test_a_body_may_come_in_chunks(
    address: tuple[str, int], message: bytes, output: bytes, chunk: int
) -> None:
    answer = exchange(address, chunked(message, chunk))
    assert statuses(answer) == [200]
    assert answer.endswith(output)


def test_a_call_may_come_byte_by_byte(address: tuple[str, int], message: bytes, output: bytes) -> None:
    call = post(message)
    answer = exchange(address, *(call[at : at + 1] for at in range(len(call))))
    assert statuses(answer) == [200]
    assert answer.endswith(output)


def test_a_connection_serves_call_after_call(function: ExpertProcess, message: bytes, output: bytes) -> None:
    connection = function.connect()
    clients = set()
    for path, status in (("/", 200), ("/_/health", 405), ("/nowhere", 404), ("/?x=1", 200)):
        connection.request("POST", path, message)
        clients.add(connection.sock.getsockname())
        answer = connection.getresponse()
        assert answer.status == status
        body = answer.read()
    assert body.endswith(output)
    assert len(clients) == 1
    connection.close()


def test_pipelined_calls_are_answered_in_order(
    address: tuple[str, int], message: bytes, output: bytes
) -> None:
    missing = b"GET /missing HTTP/1.1\r\n\r\n"
    answers = exchange(address, HEALTH + post(message) + missing + post(message))
    assert statuses(answers) == [200, 200, 404, 200]
    assert answers.count(output) == 2


def test_requests_before_garbage_are_answered(address: tuple[str, int]) -> None:
    answers = exchange(address, HEALTH + b"garbage\r\n\r\n")
    assert statuses(answers) == [200, 400]


@pytest.mark.parametrize("call", [HEALTH.replace(b"1.1", b"1.0"), HEALTH[:-2] + b"Connection: close\r\n\r\n"])
def test_a_client_may_ask_to_close_the_connection(address: tuple[str, int], call: bytes) -> None:
    with socket.create_connection(address, timeout=30) as client:
        client.sendall(call)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert statuses(answer) == [200]
    assert b"Connection: close\r\n" in answer


def test_100_continue_comes_before_the_body(address: tuple[str, int], message: bytes, output: bytes) -> None:
    call = post(message, "Expect: 100-continue\r\n")
    with socket.create_connection(address, timeout=30) as client:
        client.sendall(call[: -len(message)])
        wanted = b"HTTP/1.1 100 Continue\r\n\r\n"
        assert client.recv(len(wanted), socket.MSG_WAITALL) == wanted
        client.sendall(message)
        client.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert statuses(answer) == [200]
    assert answer.endswith(output)


@pytest.mark.parametrize(
    "garbage",
    [
        b"garbage\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: ten\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nten\r\n",
        b"CONNECT there:443 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
    ],
    ids=repr,
)
def test_malformed_http_gives_400(function: ExpertProcess, address: tuple[str, int], garbage: bytes) -> None:
    answer = exchange(address, garbage)
    assert statuses(answer) == [400]
    assert b'"code": "bad_request"' in answer
    assert function.call("GET", "/_/health") == (200, b"OK")


def test_a_client_may_hang_up_within_a_request(
    function: ExpertProcess, address: tuple[str, int], message: bytes
) -> None:
    assert exchange(address, post(message)[:-1]) == b""
    assert function.call("GET", "/_/health") == (200, b"OK")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 405, "method_not_allowed"),
        ("PUT", "/", 405, "method_not_allowed"),
        ("GET", "/nowhere", 404, "not_found"),
        ("POST", "/_/nowhere", 404, "not_found"),
    ],
)
def test_other_methods_and_paths_are_refused(
    function: ExpertProcess, method: str, path: str, status: int, code: str
) -> None:
    assert function.error(b"", method, path) == (status, code)


def test_a_too_large_content_length_gives_413_at_once(address: tuple[str, int]) -> None:
    call = f"POST / HTTP/1.1\r\nContent-Length: {MAX_BODY_BYTES + 1}\r\n\r\n".encode()
    answer = exchange(address, call)
    assert statuses(answer) == [413]
    assert b'"code": "too_large"' in answer


@contextmanager
def small_server() -> Iterator[tuple[str, int]]:
    """A server for bodies of at most 1000 bytes, whose function is still starting."""
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    server = HttpServer(listener, ExpertFunction(max_in_flight=1), max_body_bytes=1000)
    serving = Thread(target=server.serve, args=(10.0,))
    serving.start()
    try:
        yield address
    finally:
        server.stop()
        serving.join()


@pytest.mark.parametrize(("size", "status"), [(1000, 503), (1001, 413), (1_000_000, 413)])
def test_a_body_over_the_limit_gives_413(size: int, status: int) -> None:
    with small_server() as address:
        body = b"x" * size
        for call in (post(body), chunked(body, 400)):
            assert statuses(exchange(address, call)) == [status]


def test_a_header_over_the_limit_gives_413() -> None:
    with small_server() as address:
        header = "".join(f"X-{number}: {'x' * 1000}\r\n" for number in range(70))
        assert statuses(exchange(address, post(b"", header))) == [413]
        assert statuses(exchange(address, b"GET / HTTP/1.1\r\nX: " + b"x" * 300_000)) == [413]


def test_a_silent_connection_is_closed_for_a_new_one() -> None:
    with small_server() as address, ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS):
            stack.enter_context(socket.create_connection(address))
        for _ in range(3):
            assert statuses(exchange(address, b"GET /_/health HTTP/1.1\r\n\r\n")) == [200]


def test_the_answer_to_head_has_no_body() -> None:
    with small_server() as address:
        answer = exchange(address, b"HEAD /_/health HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert answer.endswith(b"\r\n\r\n")
        assert b"Content-Length: 2\r\n" in answer
        assert statuses(exchange(address, b"POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n")) == [405]


@pytest.mark.skipif(len(CORES) < 2, reason="there is no other core to go to")
@pytest.mark.parametrize("leaves", [False, True])
def test_the_thread_leaves_the_clients_core_if_configured(leaves: bool) -> None:
    def cores(_: FunctionRequest) -> FunctionResponse:
        return FunctionResponse(body=[str(len(os.sched_getaffinity(0))).encode()])

    listener = socket.create_server(("127.0.0.1", 0))
    server = HttpServer(listener, cores, max_body_bytes=1000)
    server.leaves_client_core = leaves
    host, port = listener.getsockname()
    serving = Thread(target=server.serve, args=(10.0,))
    serving.start()
    try:
        client = HTTPConnection(host, port, timeout=10.0)
        client.request("GET", "/")
        assert int(client.getresponse().read()) == len(CORES) - leaves
        client.close()
    finally:
        server.stop()
        serving.join(10.0)
