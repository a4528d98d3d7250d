"""An expert function in a process, with the requests that tests send to it."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from control_plane.faas.connection import Address
from functions.contract.messages import Invocation, InvocationResult
from tests.support.paths import ROOT

COMMAND = (sys.executable, "-m", "functions.expert")


@dataclass
class ExpertProcess:
    """A function's process and its address."""

    name: str
    address: Address
    process: subprocess.Popen[str]
    banner: str = ""
    """The line that the process printed when it was ready."""

    def wait_ready(self) -> None:
        assert self.process.stdout is not None
        self.banner = self.process.stdout.readline()
        assert self.banner, "the function did not start"

    def connect(self) -> HTTPConnection:
        return HTTPConnection(self.address.host, self.address.port, timeout=30)

    def call(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Send a request on a new connection; returns status and body of the answer."""
        connection = self.connect()
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def invoke(self, invocation: Invocation) -> InvocationResult:
        status, body = self.call("POST", "/", b"".join(invocation.encode()))
        assert status == 200, body
        return InvocationResult.decode(body)

    def error(self, body: bytes, method: str = "POST", path: str = "/") -> tuple[int, str]:
        """Send a request that fails; returns status and code of the contract's error."""
        status, answer = self.call(method, path, body)
        return status, json.loads(answer)["error"]["code"]

    def metrics(self) -> dict[str, float]:
        """The metrics, by their names without the common prefix."""
        lines = self.call("GET", "/metrics")[1].decode().splitlines()
        samples = (line.split() for line in lines if not line.startswith("#"))
        return {name.removeprefix("faasmoe_function_"): float(value) for name, value in samples}


@contextmanager
def starting_process(
    partition: Path,
    function: str,
    *,
    port: int = 0,
    sources: Path = ROOT,
    preexec_fn: Callable[[], None] | None = None,
    **environment: str,
) -> Iterator[ExpertProcess]:
    """Run `function` as a supervisor does: on an inherited socket, until its standard input ends."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        process = subprocess.Popen(
            COMMAND,
            env=expert_environment(
                partition, function, FAASMOE_LISTEN_FD=str(listener.fileno()), **environment
            ),
            cwd=sources,
            preexec_fn=preexec_fn,
            pass_fds=(listener.fileno(),),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        address = Address(*listener.getsockname())
    with process:
        yield ExpertProcess(function, address, process)


@contextmanager
def expert_process(partition: Path, function: str, **options: Any) -> Iterator[ExpertProcess]:
    """Run `function` as `starting_process` does, and wait until it is ready."""
    with starting_process(partition, function, **options) as process:
        process.wait_ready()
        yield process


def expert_environment(partition: Path, function: str, **more: str) -> dict[str, str]:
    """The environment variables for a function's process with one compute thread."""
    settings = {"FAASMOE_FUNCTION": function, "FAASMOE_PARTITION": str(partition), "FAASMOE_THREADS": "1"}
    return {**os.environ, **settings, **more}
