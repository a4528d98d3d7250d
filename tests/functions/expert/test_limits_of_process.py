"""A function's process ends at a signal from its first moment on, and keeps its memory and files in bounds."""

import os
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from functions.contract.process import MAX_BODY_BYTES
from functions.expert.function_process import OTHER_FILES
from functions.expert.http_server import MAX_BODIES, MAX_CONNECTIONS
from tests.conftest import StartFunction
from tests.support.expert_process import COMMAND, ExpertProcess, expert_environment
from tests.support.tiny_partition import TinyPartition

pytestmark = pytest.mark.slow

EXIT_SECONDS = 3.0
WAIT_SECONDS = 30.0
LEAST_FILES = MAX_CONNECTIONS + OTHER_FILES

NEW_NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child")
"""Runs a command as process 1, as a container does: the kernel ignores signals that it has no handler for."""


def as_process_1() -> tuple[str, ...]:
    """`NEW_NAMESPACE`, or nothing where that is not allowed."""
    try:
        allowed = subprocess.run([*NEW_NAMESPACE, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    return NEW_NAMESPACE if allowed else ()


@contextmanager
def starting(partition: Path, function: str) -> Iterator[tuple[subprocess.Popen[bytes], int, int]]:
    """Start a function as process 1; yields the command, the function's process id and its port."""
    prefix = as_process_1()
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
    process = subprocess.Popen(
        [*prefix, *COMMAND],
        env=expert_environment(partition, function, FAASMOE_PORT=str(port)),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    with process:
        try:
            yield process, first_child(process.pid) if prefix else process.pid, port
        finally:
            process.kill()


def first_child(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    wait_for(lambda: children.read_text() != "")
    return int(children.read_text().split()[0])


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def has_handler(pid: int, _: int) -> bool:
    """Whether the process has any handler for SIGTERM."""
    (caught,) = [
        line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt")
    ]
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def imports_numpy(pid: int, _: int) -> bool:
    return "numpy" in Path(f"/proc/{pid}/maps").read_text()


def has_kernel(pid: int, _: int) -> bool:
    return "_gated_ffn" in Path(f"/proc/{pid}/maps").read_text()


def listens(_: int, port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("moment", [has_handler, imports_numpy, has_kernel, listens])
def test_a_function_that_starts_ends_at_once(
    tiny: TinyPartition, tmp_path: Path, moment: Callable[[int, int], bool]
) -> None:
    """At each moment of a start, which here waits for its manifest."""
    shutil.copytree(tiny.folder, tmp_path / "partition")
    (tmp_path / "partition" / "manifest.json").unlink()
    os.mkfifo(tmp_path / "partition" / "manifest.json")
    with starting(tmp_path / "partition", tiny.functions[0]) as (process, pid, port):
        wait_for(lambda: moment(pid, port))
        os.kill(pid, signal.SIGTERM)
        assert process.wait(EXIT_SECONDS) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_signals_are_handled_before_anything_slow_is_imported(tiny: TinyPartition) -> None:
    with starting(tiny.folder, tiny.functions[0]) as (_, pid, port):
        wait_for(lambda: has_handler(pid, port))
        assert not imports_numpy(pid, port)


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
    for _ in range(5):
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
    assert line.startswith(f"cannot start: needs {LEAST_FILES} open files, and the limit is {LEAST_FILES - 1}")


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
