"""Calls that are cut off or never end take a bounded amount of a function's memory and files."""

import resource
import socket
import subprocess
from collections.abc import Callable
from contextlib import ExitStack, suppress

import psutil
import pytest

from functions.contract.process import MAX_BODY_BYTES
from functions.expert.function_process import OTHER_FILES
from functions.http.server import MAX_BODIES, MAX_CONNECTIONS
from tests.conftest import StartFunction
from tests.support.functions.expert_process import COMMAND, ExpertProcess, expert_environment
from tests.support.models.tiny_partition import TinyPartition

pytestmark = pytest.mark.slow

LEAST_FILES = MAX_CONNECTIONS + OTHER_FILES


def cut_off(function: ExpertProcess, data: bytes) -> None:
    with socket.create_connection((function.address.host, function.address.port)) as connection:
        connection.sendall(data)


def rss(function: ExpertProcess) -> float:
    """Resident memory in MB."""
    return float(psutil.Process(function.process.pid).memory_info().rss) / 1e6


CUT_OFF = {
    "announced": b"POST / HTTP/1.1\r\nContent-Length: 8000000\r\n\r\n",
    "begun": b"POST / HTTP/1.1\r\nContent-Length: 60000000\r\n\r\n" + bytes(300_000),
    "chunked": b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n100000\r\n" + bytes(300_000),
    "header": b"POST / HTTP/1.1\r\nX: " + bytes(60_000).replace(b"\0", b"x"),
}


def test_memory_stays_flat_over_calls_that_are_cut_off(
    start_function: StartFunction, tiny: TinyPartition
) -> None:
    function = start_function(tiny.folder, tiny.functions[0])
    figures = []
    for _ in range(3):
        for data in CUT_OFF.values():
            for _ in range(100):
                with suppress(OSError):
                    cut_off(function, data)
        assert function.call("GET", "/_/health") == (200, b"OK")
        figures.append(rss(function))
    print("MB after each 400 calls that were cut off:", *(f"{figure:.1f}" for figure in figures))
    assert figures[-1] < figures[0] + 4


def test_an_announced_body_takes_memory_as_it_arrives(
    start_function: StartFunction, tiny: TinyPartition
) -> None:
    function = start_function(tiny.folder, tiny.functions[0])
    before = rss(function)
    with ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS - 1):
            connection = stack.enter_context(
                socket.create_connection((function.address.host, function.address.port))
            )
            connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % MAX_BODY_BYTES)
        assert function.call("GET", "/_/health") == (200, b"OK")
        print(f"{MAX_CONNECTIONS - 1} announced bodies of {MAX_BODY_BYTES >> 20} MB: {before:.1f} MB before,")
        print(f"{rss(function):.1f} MB with them")
        assert rss(function) < before + 60


def test_bodies_that_are_begun_take_a_bounded_amount(
    start_function: StartFunction, tiny: TinyPartition
) -> None:
    """And calls of others are answered meanwhile."""
    function = start_function(tiny.folder, tiny.functions[0])
    invocation = tiny.invocation(function.name)
    before = highest = rss(function)
    with ExitStack() as stack:
        for _ in range(30):
            connection = stack.enter_context(
                socket.create_connection((function.address.host, function.address.port))
            )
            with suppress(OSError):
                connection.sendall(
                    b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % MAX_BODY_BYTES + bytes(20 << 20)
                )
            highest = max(highest, rss(function))
        tiny.check(invocation, function.invoke(invocation).output)
        highest = max(highest, rss(function))
    print(f"30 begun bodies of 20 MB: {before:.1f} MB before, {highest:.1f} MB at most")
    assert highest < before + MAX_BODIES * MAX_BODY_BYTES / 1e6 + 40


def limited(soft: int, hard: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_function_with_too_few_files_does_not_start(tiny: TinyPartition) -> None:
    ended = subprocess.run(
        COMMAND,
        env=expert_environment(tiny.folder, tiny.functions[0]),
        preexec_fn=limited(64, LEAST_FILES - 1),
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith(
        f"cannot start: needs {LEAST_FILES} open files, and the limit is {LEAST_FILES - 1}"
    )


def test_a_function_raises_a_low_limit_to_the_least_that_it_needs(
    start_function: StartFunction, tiny: TinyPartition
) -> None:
    """All its connections fit into that, and so do the files that it opens for calls."""
    function = start_function(tiny.folder, tiny.functions[0], preexec_fn=limited(64, LEAST_FILES))
    invocation = tiny.invocation(function.name)
    with ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS - 2):
            connection = stack.enter_context(
                socket.create_connection((function.address.host, function.address.port))
            )
            connection.sendall(b"POST / HTTP/1.1\r\n")
        for _ in range(5):
            tiny.check(invocation, function.invoke(invocation).output)
    assert psutil.Process(function.process.pid).rlimit(psutil.RLIMIT_NOFILE)[0] == LEAST_FILES
