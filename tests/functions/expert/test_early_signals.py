"""A function ends at once when it is told to while it starts, also as process 1 of a container."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.functions.expert_process import COMMAND, expert_environment
from tests.support.models.tiny_partition import TinyPartition

EXIT_SECONDS = 3.0
WAIT_SECONDS = 30.0

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
