"""The health of functions that live, hang, refuse or are gone, asked together."""

import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from control_plane.faas.connection import Address
from control_plane.faas.wire.health import healthy
from tests.conftest import StartFunction
from tests.support.functions.expert_process import ExpertProcess
from tests.support.models.tiny_partition import TinyPartition


def test_functions_that_hang_are_found_together(
    function: ExpertProcess, tiny: TinyPartition, start_function: StartFunction
) -> None:
    other = start_function(tiny.folder, tiny.functions[1])
    os.kill(other.process.pid, signal.SIGSTOP)
    try:
        with ExitStack() as stack:
            mute = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(5)]
            closed = stack.enter_context(socket.socket())
            closed.bind(("127.0.0.1", 0))
            hung = [other.address, *(Address(*each.getsockname()) for each in (*mute, closed))]
            began = time.monotonic()
            assert healthy([*hung, function.address], 0.5, 1.0) == {function.address}
            assert 0.5 <= time.monotonic() - began < 1.5
    finally:
        os.kill(other.process.pid, signal.SIGCONT)
    assert healthy([function.address, other.address], 5, 1.0) == {function.address, other.address}


@pytest.mark.parametrize("answer", [b"HTTP/1.1 503 Busy\r\n\r\n", b"garbage", b""])
def test_an_answer_other_than_200_is_no_health(answer: bytes) -> None:
    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as threads:
        threads.submit(serve)
        began = time.monotonic()
        assert healthy([Address(*server.getsockname())], 5, 1.0) == set()
        assert time.monotonic() - began < 4


def test_one_that_takes_no_connection_is_not_waited_for() -> None:
    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(1000)
            time.sleep(0.5)
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(1))
        # The kernel drops attempts to connect beyond the backlog, like a host that has gone.
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        stack.enter_context(socket.create_connection(full.getsockname()))
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        server.settimeout(10)
        slow, gone = Address(*server.getsockname()), Address(*full.getsockname())
        threads.submit(serve)
        began = time.monotonic()
        assert healthy([gone, slow], 20, 0.2) == {slow}
        assert healthy([gone], 20, 0.2) == set()
        assert time.monotonic() - began < 5
