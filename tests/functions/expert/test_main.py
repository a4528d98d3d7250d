"""How a function's process starts and ends, and how much memory it needs."""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from control_plane.faas.connection import Address
from functions.contract.messages import Invocation
from tests.conftest import StartFunction
from tests.support.functions.expert_process import (
    COMMAND,
    ExpertProcess,
    expert_environment,
    starting_process,
)
from tests.support.models.tiny_partition import TinyPartition

pytestmark = pytest.mark.slow

IDLE_PRIVATE_BYTES = 30e6
EXIT_SECONDS = 20


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port that no other process gets, and on which a server that reuses addresses can listen."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def failure_to_start(environment: dict[str, str]) -> str:
    """Start a function that has to fail; returns the one line that it prints."""
    ended = subprocess.run(COMMAND, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("cannot start: ")
    return line


def unlink(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    os.truncate(path, 5000)


def without(field: str) -> Callable[[Path], None]:
    def rename(path: Path) -> None:
        path.write_text(path.read_text().replace(f'"{field}":', '"other":'))

    return rename


@pytest.mark.parametrize(
    ("file", "damage", "named"),
    [
        ("block", unlink, "e00-01.safetensors"),
        ("block", truncate, "has 5000 bytes"),
        ("manifest", unlink, "manifest.json"),
        ("manifest", truncate, "JSONDecodeError"),
        ("manifest", without("dtype"), "dtype"),
        ("manifest", without("fingerprint"), "fingerprint"),
        ("manifest", without("experts"), "experts"),
    ],
)
def test_a_damaged_partition_gives_one_clear_line(
    tiny: TinyPartition, tmp_path: Path, file: str, damage: Callable[[Path], None], named: str
) -> None:
    shutil.copytree(tiny.folder, tmp_path / "damaged")
    block = tiny.manifest.blocks[0]
    damage(tmp_path / "damaged" / {"block": block.file, "manifest": "manifest.json"}[file])
    with reserved_port() as port:
        environment = expert_environment(tmp_path / "damaged", block.function, FAASMOE_PORT=str(port))
        assert named in failure_to_start(environment)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FAASMOE_FUNCTION", ""),
        ("FAASMOE_FUNCTION", "another"),
        ("FAASMOE_PORT", "http"),
        ("FAASMOE_PORT", "65536"),
        ("FAASMOE_THREADS", "0"),
        ("FAASMOE_THREADS", "65"),
        ("FAASMOE_KERNEL", "sse9"),
        ("FAASMOE_LISTEN_FD", "-1"),
        ("FAASMOE_HOST", "192.0.2.1"),
    ],
)
def test_a_wrong_setting_gives_one_clear_line(tiny: TinyPartition, variable: str, value: str) -> None:
    with reserved_port() as port:
        environment = expert_environment(tiny.folder, tiny.functions[0], FAASMOE_PORT=str(port))
        line = failure_to_start({**environment, variable: value})
    if variable != "FAASMOE_HOST":
        assert variable in line or repr(value) in line


def test_a_port_that_is_taken_gives_one_clear_line(tiny: TinyPartition) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        line = failure_to_start(expert_environment(tiny.folder, tiny.functions[0], FAASMOE_PORT=port))
    assert "Address already in use" in line


def test_a_starting_function_is_healthy_but_not_ready(tiny: TinyPartition, tmp_path: Path) -> None:
    shutil.copytree(tiny.folder, tmp_path / "partition")
    manifest = tmp_path / "partition" / "manifest.json"
    manifest.unlink()
    os.mkfifo(manifest)  # the function waits in its read until the test writes
    invocation = tiny.invocation(tiny.functions[0])
    with starting_process(tmp_path / "partition", tiny.functions[0]) as function:
        health = function.call("GET", "/_/health")
        ready = function.error(b"", "GET", "/_/ready")
        invoked = function.error(b"".join(invocation.encode()))
        experts = function.metrics()["experts"]
        manifest.write_bytes((tiny.folder / "manifest.json").read_bytes())
        function.wait_ready()
        assert (health, ready, invoked, experts) == ((200, b"OK"), (503, "starting"), (503, "starting"), 0)
        assert function.call("GET", "/_/ready") == (200, b"OK")
        tiny.check(invocation, function.invoke(invocation).output)


def test_a_function_without_a_supervisor_listens_on_the_configured_port(tiny: TinyPartition) -> None:
    with reserved_port() as port:
        process = subprocess.Popen(
            COMMAND,
            env=expert_environment(tiny.folder, tiny.functions[1], FAASMOE_PORT=str(port)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                function = ExpertProcess(tiny.functions[1], Address("127.0.0.1", port), process)
                function.wait_ready()
                invocation = tiny.invocation(function.name)
                tiny.check(invocation, function.invoke(invocation).output)
            finally:
                # Without a supervisor, nothing else ends it.
                process.terminate()
            assert process.wait(30) == 0


def test_an_idle_function_needs_little_memory(start_function: StartFunction, tiny: TinyPartition) -> None:
    function = start_function(tiny.folder, tiny.functions[0])
    assert psutil.Process(function.process.pid).memory_full_info().uss < IDLE_PRIVATE_BYTES


def sigterm(function: ExpertProcess) -> None:
    function.process.terminate()


def sigint(function: ExpertProcess) -> None:
    function.process.send_signal(signal.SIGINT)


def end_of_stdin(function: ExpertProcess) -> None:
    assert function.process.stdin is not None
    function.process.stdin.close()


def everything_at_once(function: ExpertProcess) -> None:
    end_of_stdin(function)
    sigterm(function)
    sigint(function)


@pytest.mark.parametrize("end", [sigterm, sigint, end_of_stdin, everything_at_once])
def test_a_function_ends_at_a_signal_or_with_its_supervisor(
    start_function: StartFunction, tiny: TinyPartition, end: Callable[[ExpertProcess], None]
) -> None:
    function = start_function(tiny.folder, tiny.functions[0])
    with socket.create_connection(
        (function.address.host, function.address.port)
    ):  # an idle connection delays nothing
        end(function)
        assert function.process.wait(30) == 0


def test_calls_in_flight_are_answered_before_the_function_ends(
    start_function: StartFunction, tiny: TinyPartition
) -> None:
    function = start_function(tiny.folder, tiny.functions[0])
    call = tiny.invocation(function.name, rows=100)
    expected = np.tile(function.invoke(call).output, (1000, 1))
    connection = function.connect()
    connection.request("POST", "/", b"".join(tiled(call, 1000).encode()))
    # The system buffers less than these 10 MB: until they are read, the function is busy sending them.
    connection.sock.recv(1, socket.MSG_PEEK)
    function.process.terminate()
    wait_until_refused(function)
    assert function.process.poll() is None
    assert connection.getresponse().read().endswith(expected.tobytes())
    connection.close()
    assert function.process.wait(30) == 0


def tiled(call: Invocation, times: int) -> Invocation:
    """The call's rows, repeated."""
    return replace(
        call,
        hidden_states=np.tile(call.hidden_states, (times, 1)),
        expert_index=np.tile(call.expert_index, (times, 1)),
        expert_weight=np.tile(call.expert_weight, (times, 1)),
    )


def wait_until_refused(function: ExpertProcess) -> None:
    while True:
        try:
            socket.create_connection((function.address.host, function.address.port)).close()
        except ConnectionError:
            return


def test_an_idle_function_ends_after_its_idle_time(tiny: TinyPartition) -> None:
    name = tiny.functions[0]
    with starting_process(tiny.folder, name, FAASMOE_IDLE_EXIT="1") as function:
        function.wait_ready()
        invocation = tiny.invocation(name)
        tiny.check(invocation, function.invoke(invocation).output)
        assert function.process.wait(EXIT_SECONDS) == 0
        assert function.process.stdout is not None
        assert "ending after 1 s without an invocation" in function.process.stdout.read()
