"""A connection's thread leaves the core that its client sends from to the client."""

import os
import socket
import threading
from collections.abc import Callable
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import pytest
from functions.expert.http import HttpServer, Request, Response

from control_plane.partition.granularity import Granularity
from functions.expert.expert_block import ExpertBlock
from functions.host.threads import ClientCore
from functions.kernels import load_kernel
from tests.support.tiny_partition import TinyPartition

CORES = sorted(os.sched_getaffinity(0))
TIMEOUT = 10.0


def on_thread(work: Callable[[], None]) -> None:
    """Run it on a thread of its own: where that may run, it keeps to itself."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(TIMEOUT)
    assert not thread.is_alive()
    if failures:
        raise failures[0]


@pytest.mark.skipif(len(CORES) < 2, reason="there is no other core to go to")
def test_it_leaves_the_clients_core_and_follows_when_that_changes() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
    ):
        connection, _ = listener.accept()
        connection.settimeout(TIMEOUT)

        def send_from(core: int) -> None:
            os.sched_setaffinity(0, {core})
            client.sendall(b"x")

        def serve() -> None:
            client_core = ClientCore(connection)
            for core in (CORES[0], CORES[1], CORES[0]):
                on_thread(lambda core=core: send_from(core))
                assert connection.recv(1) == b"x"
                client_core.keep_off()
                assert os.sched_getaffinity(0) == set(CORES) - {core}

        with connection:
            on_thread(serve)


def test_with_a_single_core_it_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    asked: list[object] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda *arguments: asked.append(arguments))
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            ClientCore(connection).keep_off()
    assert not asked


@pytest.mark.skipif(len(CORES) < 2, reason="there is no other core to go to")
@pytest.mark.parametrize("leaves", [False, True])
def test_a_server_leaves_the_clients_core_if_it_is_to(leaves: bool) -> None:
    def cores(_: Request) -> Response:
        return Response(body=[str(len(os.sched_getaffinity(0))).encode()])

    listener = socket.create_server(("127.0.0.1", 0))
    server = HttpServer(listener, cores, 1000)
    server.leaves_client_core = leaves
    host, port = listener.getsockname()
    serving = threading.Thread(target=server.serve, args=(TIMEOUT,))
    serving.start()
    try:
        client = HTTPConnection(host, port, timeout=TIMEOUT)
        client.request("GET", "/")
        assert int(client.getresponse().read()) == len(CORES) - leaves
        client.close()
    finally:
        server.stop()
        serving.join(TIMEOUT)


@pytest.mark.parametrize(
    ("granularity", "cores", "fits"),
    [
        (Granularity(5, 1), 2, True),
        (Granularity(5, 3), 1, False),
        (Granularity(3, 1), 2, False),
        (Granularity(3, 1), 3, True),
        (Granularity(1, 1), 4, False),
    ],
)
def test_functions_of_a_layer_need_a_core_each_beside_the_clients(
    granularity: Granularity, cores: int, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = TinyPartition.make(tmp_path, "f32", granularity)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    block = ExpertBlock.open(tiny.folder, tiny.functions[0], load_kernel("numpy"), threads=1)
    with closing(block.residency):
        assert block.fits_beside_client == fits
