"""A connection's thread leaves the core that its client sends from to the client."""

import os
import socket
import threading
from collections.abc import Callable

import pytest

from functions.expert.cores import ClientCore

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
