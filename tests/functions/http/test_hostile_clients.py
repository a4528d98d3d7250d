"""Clients that stall, flood or never end: the function's HTTP server bounds them and answers the others."""

import gc
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

import pytest

from functions.http import server as http_server
from functions.http.connections import Client, Connections
from functions.http.messages import MAX_PIPELINED, FunctionRequest, FunctionResponse, RequestReader
from functions.http.server import MAX_CONNECTIONS, HttpServer
from tests.functions.http.test_server import HEALTH, exchange, statuses

pytestmark = pytest.mark.slow

MAX_BODY_BYTES = 1 << 20
ANSWER_SECONDS = 5.0
"""The most for a probe under attack on a busy machine, where it takes a fraction of a second."""
END_SECONDS = 20.0
BEGUN = b"POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\nbegun"
CHUNKED = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"

Address = tuple[str, int]


def echo(request: FunctionRequest) -> FunctionResponse:
    return FunctionResponse(body=[bytes(request.body)])


def long_answer(_: FunctionRequest) -> FunctionResponse:
    """More than sockets buffer."""
    return FunctionResponse(body=[bytes(20 << 20)])


@contextmanager
def server(handler: http_server.Handler = echo) -> Iterator[Address]:
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    address = listener.getsockname()
    serving = HttpServer(listener, handler, MAX_BODY_BYTES)
    thread = Thread(target=serving.serve, args=(1.0,))
    thread.start()
    try:
        yield address
    finally:
        serving.stop()
        thread.join()


def begin(stack: ExitStack, address: Address, data: bytes) -> socket.socket:
    """A connection that sends `data` and stays open until the end of the test."""
    connection = stack.enter_context(socket.create_connection(address, END_SECONDS))
    connection.sendall(data)
    return connection


def until_closed(connection: socket.socket) -> bytes:
    """What the server sends until it closes the connection."""
    answer = b""
    with suppress(ConnectionError):
        while piece := connection.recv(65536):
            answer += piece
    return answer


def probe(address: Address) -> float:
    """The seconds of a probe on a new connection; it must be answered."""
    began = time.monotonic()
    assert statuses(exchange(address, HEALTH)) == [200]
    return time.monotonic() - began


def post(nbytes: int) -> bytes:
    return b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % nbytes


@pytest.mark.parametrize(
    "begun",
    [b"", b"PO", b"POST / HTTP/1.1\r\nX: ", BEGUN, CHUNKED + b"5\r\nbegun", HEALTH + b"POST"],
    ids=repr,
)
def test_connections_that_stall_give_way_to_new_ones(begun: bytes) -> None:
    with server() as address, ExitStack() as stack:
        for _ in range(2 * MAX_CONNECTIONS):
            begin(stack, address, begun)
        assert max(probe(address) for _ in range(5)) < ANSWER_SECONDS


def test_connections_whose_client_reads_no_answer_give_way() -> None:
    with server(long_answer) as address, ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS):
            begin(stack, address, HEALTH).recv(1)
        assert probe(address) < END_SECONDS / 2


def test_probes_are_answered_under_a_flood_of_begun_calls() -> None:
    ended = Event()

    def flood() -> None:
        while not ended.is_set():
            with ExitStack() as stack, suppress(OSError):
                for _ in range(3 * MAX_CONNECTIONS):
                    begin(stack, address, BEGUN)

    with server() as address:
        attack = Thread(target=flood)
        attack.start()
        try:
            seconds = [probe(address) for _ in range(50)]
        finally:
            ended.set()
            attack.join()
    print(f"a probe under a flood: {max(seconds):.3f} s at most")
    assert max(seconds) < ANSWER_SECONDS


def test_a_client_may_not_trickle_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "RECEIVE_SECONDS", 0.3)
    for begun in (b"GET / HTTP/1.1\r\nX: ", BEGUN, CHUNKED + b"5000\r\n", HEALTH + b"GET /"):
        with server() as address, ExitStack() as stack:
            connection = begin(stack, address, begun)
            assert until_broken(connection) < END_SECONDS


def test_a_client_may_not_trickle_after_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "REFUSED_SECONDS", 0.3)
    with server() as address, ExitStack() as stack:
        connection = begin(stack, address, b"garbage\r\n\r\n")
        assert until_broken(connection) < END_SECONDS


def until_broken(connection: socket.socket) -> float:
    """Send byte after byte; returns the seconds until the server does not take them any more."""
    began = time.monotonic()
    with suppress(ConnectionError):
        while time.monotonic() - began < END_SECONDS:
            connection.sendall(b"x")
            time.sleep(0.02)
    return time.monotonic() - began


def test_an_answer_has_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time that was left for the rest of a call is not the answer's."""
    monkeypatch.setattr(http_server, "RECEIVE_SECONDS", 0.3)
    with server(long_answer) as address, ExitStack() as stack:
        connection = begin(
            stack, address, post(100).replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
        connection.sendall(bytes(100))
        assert connection.recv(1) == b"H"
        time.sleep(0.6)
        connection.shutdown(socket.SHUT_WR)
        assert len(until_closed(connection)) > 20 << 20


def test_an_answer_that_nobody_reads_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "SEND_SECONDS", 0.2)
    with server(long_answer) as address, ExitStack() as stack:
        connection = begin(stack, address, HEALTH)
        began = time.monotonic()
        while established(address) > 1 and time.monotonic() - began < END_SECONDS:
            time.sleep(0.05)
        assert time.monotonic() - began < END_SECONDS
        assert len(until_closed(connection)) < 20 << 20


def established(address: Address) -> int:
    """Ends of connections with the server's port, here or there, that nobody has closed."""
    port = f":{address[1]:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()
    return sum(port in line and line.split()[3] == "01" for line in lines)


@pytest.mark.parametrize(
    "begin_with",
    [
        b"GET / HTTP/1.1\r\nX: ",
        b"GET /",
        CHUNKED + b"0\r\nX: ",
        CHUNKED + b"5\r\nhello\r\n0\r\nX: ",
        CHUNKED + b"5;",
        CHUNKED + b"5\r\nhello\r\n5;",
    ],
    ids=repr,
)
def test_headers_trailers_and_extensions_are_bounded(begin_with: bytes) -> None:
    with server() as address:
        answer = exchange(address, begin_with, *[b"x" * 1000] * 300)
        assert statuses(answer)[-1:] == [413]


def test_many_headers_and_trailers_are_bounded() -> None:
    lines = b"".join(b"X-%d: y\r\n" % number for number in range(20_000))
    with server() as address:
        assert statuses(exchange(address, b"GET / HTTP/1.1\r\n" + lines)) == [413]
        assert statuses(exchange(address, CHUNKED + b"0\r\n" + lines)) == [413]


def test_empty_lines_are_bounded() -> None:
    with server() as address:
        assert statuses(exchange(address, b"\r\n" * 50_000)) == [413]


def test_calls_without_waiting_for_answers_are_bounded() -> None:
    with server() as address:
        answers = exchange(address, HEALTH * 700)
        assert statuses(answers) == [200] * MAX_PIPELINED + [429]
        assert b"\r\nRetry-After: 1\r\n" in answers


def test_a_reader_is_freed_at_once_with_the_body_that_it_has_begun() -> None:
    """Without the garbage collector, which runs by the number of objects and not by their size."""
    gc.collect()
    gc.disable()
    try:
        with server() as address:
            for cut_off in (post(1000), post(1000) + b"x", CHUNKED, b"GET", b"garbage\r\n\r\n", HEALTH * 3):
                exchange(address, cut_off)
        assert not [each for each in gc.get_objects() if type(each) is RequestReader]
    finally:
        gc.enable()


def test_bodies_in_the_midst_give_way_when_they_take_too_much_memory() -> None:
    """Those that have waited longest; the last one is received whole."""
    with server() as address, ExitStack() as stack:
        slow = [begin(stack, address, post(MAX_BODY_BYTES) + bytes(MAX_BODY_BYTES - 1)) for _ in range(5)]
        answer = exchange(address, post(MAX_BODY_BYTES) + bytes(MAX_BODY_BYTES))
        assert statuses(answer) == [200]
        assert len(answer) > MAX_BODY_BYTES
        # One whose last bytes arrive while the whole body is in flight is told so.
        assert set(statuses(b"".join(map(until_closed, slow[:3])))) <= {503}


def test_a_body_is_refused_when_calls_in_flight_take_all_memory() -> None:
    arrived, go = [], Event()

    def wait(request: FunctionRequest) -> FunctionResponse:
        if request.body:
            arrived.append(request)
            assert go.wait(END_SECONDS)
        return FunctionResponse()

    with server(wait) as address, ExitStack() as stack:
        try:
            busy = [begin(stack, address, post(MAX_BODY_BYTES) + bytes(MAX_BODY_BYTES)) for _ in range(2)]
            while len(arrived) < 2:
                time.sleep(0.01)
            answer = exchange(address, post(MAX_BODY_BYTES) + bytes(MAX_BODY_BYTES))
            assert statuses(answer) == [503]
            assert b'"code": "overloaded"' in answer
            assert b"\r\nRetry-After: 1\r\n" in answer
            assert probe(address) < ANSWER_SECONDS
        finally:
            go.set()
        for connection in busy:
            connection.shutdown(socket.SHUT_WR)
            assert statuses(until_closed(connection)) == [200]


def client(stack: ExitStack) -> Client:
    """A connection, whose peer is open until the end of the test."""
    here, there = socket.socketpair()
    stack.enter_context(closing(there))
    return Client(stack.enter_context(here))


def test_the_connection_that_has_waited_longest_gives_way() -> None:
    """Whoever begins a call is not taken for one that has been silent for long; whoever computes stays."""
    with ExitStack() as stack:
        connections = Connections(most=4, most_nbytes=0)
        begun, silent, computing, sending = clients = [client(stack) for _ in range(4)]
        for each in clients:
            connections.add(each)
        assert connections.compute(computing)
        assert connections.compute(sending)
        connections.send(sending)
        connections.begun(begun)
        for expected in (silent, begun, sending):
            late = client(stack)
            adding = Thread(target=connections.add, args=(late,))
            adding.start()
            assert expected.socket.recv(1) == b""  # It has been shut down.
            connections.remove(expected)
            adding.join(END_SECONDS)
            assert connections.compute(late)


def test_memory_is_counted_until_a_connection_ends_or_gives_way() -> None:
    with ExitStack() as stack:
        connections = Connections(most=3, most_nbytes=100)
        first, second, third = clients = [client(stack) for _ in range(3)]
        for each in clients:
            connections.add(each)
        assert connections.hold(first, 60)
        assert connections.hold(second, 40)
        assert connections.hold(third, 10)  # The first gives way,
        assert not connections.hold(first, 1)
        assert connections.hold(third, 60)
        assert not connections.hold(second, 50)  # and the one that has waited longest gets no more.
        assert connections.compute(third)
        assert not connections.compute(first)
        assert connections.hold(second, 40)
        connections.remove(third)
        assert connections.hold(second, 100)


def test_only_computing_and_sending_delay_the_end() -> None:
    with ExitStack() as stack:
        connections = Connections(most=2, most_nbytes=100)
        busy = client(stack)
        connections.add(busy)
        connections.drain(END_SECONDS)
        assert connections.compute(busy)
        draining = Thread(target=connections.drain, args=(END_SECONDS,))
        draining.start()
        connections.send(busy)
        assert draining.is_alive()
        connections.answered(busy)
        draining.join(END_SECONDS / 2)
        assert not draining.is_alive()
