"""The cores and the time slices of a function's threads."""

import ctypes
import os
import platform
import socket
import struct
import threading
from collections.abc import Callable
from functools import partial

import pytest

from functions.host.threads import SLICE_NANOSECONDS, ClientCore, take_short_slices

CORES = sorted(os.sched_getaffinity(0))
TIMEOUT = 10.0
SCHED_GETATTR = {"x86_64": 315, "aarch64": 275}
"""The number of the system call sched_getattr(2)."""


def on_thread(work: Callable[[], None]) -> None:
    """Run `work` on a new thread, whose affinity and slices end with it; raises what `work` raises."""
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
def test_a_thread_leaves_the_clients_core_whenever_that_changes() -> None:
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
                on_thread(partial(send_from, core))
                assert connection.recv(1) == b"x"
                client_core.keep_off()
                assert os.sched_getaffinity(0) == set(CORES) - {core}

        with connection:
            on_thread(serve)


def test_a_thread_stays_on_a_single_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    asked: list[object] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda *arguments: asked.append(arguments))
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            ClientCore(connection).keep_off()
    assert not asked


def slice_of_this_thread() -> int:
    """Nanoseconds; 0 where Linux does not report it."""
    attributes = ctypes.create_string_buffer(56)
    ctypes.CDLL(None).syscall(ctypes.c_long(SCHED_GETATTR[platform.machine()]), 0, attributes, 56, 0)
    return int(struct.unpack("=IIQiIQQQII", attributes.raw)[5])


def slices_around(work: Callable[[], None]) -> list[int]:
    """The slices of a thread before and after `work`, and of a thread that it starts then."""
    seen: list[int] = []

    def run() -> None:
        seen.append(slice_of_this_thread())
        work()
        seen.append(slice_of_this_thread())
        child = threading.Thread(target=lambda: seen.append(slice_of_this_thread()))
        child.start()
        child.join()

    on_thread(run)
    return seen


@pytest.mark.skipif(platform.machine() not in SCHED_GETATTR, reason="unknown system call number")
def test_threads_take_short_slices() -> None:
    usual = slice_of_this_thread()
    if not usual:
        pytest.skip("this Linux has no time slices per thread")
    assert slices_around(take_short_slices) == [usual, SLICE_NANOSECONDS, SLICE_NANOSECONDS]
    assert slice_of_this_thread() == usual


def test_slices_stay_on_machines_without_a_known_system_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "abacus")
    libraries: list[object] = []
    monkeypatch.setattr(ctypes, "CDLL", libraries.append)
    take_short_slices()
    assert libraries == []
