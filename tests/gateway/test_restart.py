"""A gateway that was killed, or stopped, has its functions again when it is started again."""

import json
import signal
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psutil
import pytest

from control_plane.faas.types import FunctionDeployment, FunctionStatus
from control_plane.gateway import gateway_folder
from control_plane.gateway.deployment_file import DeploymentFile
from functions.contract.process import FUNCTION_VARIABLE
from tests.support.command_line import RunningCommand, running_command
from tests.support.models.tiny_partition import TinyPartition

pytestmark = pytest.mark.slow

END_SECONDS = 20


@dataclass(frozen=True)
class Running:
    """A gateway that runs as a command, and requests to it."""

    command: RunningCommand
    url: str

    def request(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        with urlopen(Request(self.url + path, data, headers, method=method), timeout=30) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def replicas(self) -> dict[str, int]:
        return {each["name"]: each["replicas"] for each in self.request("GET", "/system/functions")}

    def deploy(self, tiny: TinyPartition, name: str, **fields: object) -> None:
        variables = {"FAASMOE_FUNCTION": name}
        body = {"service": name, "image": tiny.manifest.image, "envVars": variables, **fields}
        self.request("POST", "/system/functions", body)

    def wait_available(self, name: str) -> None:
        while not self.request("GET", f"/system/function/{name}")["availableReplicas"]:
            pass

    def processes(self) -> list[psutil.Process]:
        children = psutil.Process(self.command.process.pid).children(recursive=True)
        return [child for child in children if FUNCTION_VARIABLE in child.environ()]


@pytest.fixture
def port() -> Iterator[int]:
    with socket.socket() as unused:
        # The port stays taken, but a server with SO_REUSEADDR may listen on it, as asyncio's do.
        unused.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        unused.bind(("127.0.0.1", 0))
        yield unused.getsockname()[1]


@contextmanager
def gateway(partition: Path, port: int, folder: Path) -> Iterator[Running]:
    with running_command("gateway", partition, "--port", port, temporary=folder) as command:
        yield Running(command, command.wait_for(r"gateway on (\S+);"))


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_functions_secrets_and_replicas_are_there_again(
    tiny: TinyPartition, tmp_path: Path, port: int, end: signal.Signals
) -> None:
    first, second, third = tiny.functions
    with gateway(tiny.folder, port, tmp_path) as before:
        before.request("POST", "/system/secrets", {"name": "key", "value": "42"})
        before.deploy(tiny, first, secrets=["key"], annotations={"topic": "tests"})
        before.deploy(tiny, second)
        before.deploy(tiny, third)
        before.request("POST", f"/system/scale-function/{second}", {"replicas": 0})
        before.request("DELETE", "/system/functions", {"functionName": third})
        before.command.end(end)
    with gateway(tiny.folder, port, tmp_path) as after:
        assert after.replicas() == {first: 1, second: 0}
        assert after.request("GET", f"/system/function/{first}")["annotations"] == {"topic": "tests"}
        assert [secret["name"] for secret in after.request("GET", "/system/secrets")] == ["key"]
        after.wait_available(first)
        folder = after.processes()[0].environ()["FAASMOE_SECRETS"]
        assert Path(folder, "key").read_text() == "42"
        for name in (first, second):
            invocation = tiny.invocation(name)
            body = b"".join(invocation.encode())
            url = f"{after.url}/function/{name}"
            with urlopen(Request(url, body, {"Content-Type": "application/vnd.safetensors"})) as answer:
                assert answer.status == 200


@pytest.mark.parametrize("stopped", [False, True])
def test_no_function_outlives_a_killed_gateway(
    tiny: TinyPartition, tmp_path: Path, port: int, stopped: bool
) -> None:
    name = tiny.functions[0]
    with gateway(tiny.folder, port, tmp_path) as running:
        running.deploy(tiny, name)
        running.wait_available(name)
        (function,) = running.processes()
        if stopped:
            function.send_signal(signal.SIGSTOP)
        running.command.end(signal.SIGKILL)
        function.wait(END_SECONDS)


def test_functions_of_another_partition_are_not_restored(
    tiny: TinyPartition, tmp_path: Path, port: int
) -> None:
    folder = gateway_folder(tiny.folder, port)
    name = tiny.functions[0]
    deployments = [
        FunctionDeployment("other", "faasmoe/other:1", env_vars={"FAASMOE_FUNCTION": name}),
        FunctionDeployment("gone", tiny.manifest.image, env_vars={"FAASMOE_FUNCTION": "gone"}),
        FunctionDeployment(
            "secret", tiny.manifest.image, env_vars={"FAASMOE_FUNCTION": name}, secrets=("no",)
        ),
        FunctionDeployment("good", tiny.manifest.image, env_vars={"FAASMOE_FUNCTION": name}),
    ]
    DeploymentFile(folder / "deployments.json").write([FunctionStatus(each, 0) for each in deployments])
    with gateway(tiny.folder, port, tmp_path) as running:
        assert running.replicas() == {"good": 0}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b"\xff\xfe",
        b"[]",
        b'{"format": 2, "functions": []}',
        b'{"format": 1}',
        b'{"format": 1, "functions": [{"name": 7}]}',
        b'{"format": 1, "functions": [[]]}',
        b'{"format": 1, "functions": [{"name": "x", "replicas": -1}]}',
    ],
)
def test_a_damaged_file_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    path = tmp_path / "deployments.json"
    path.write_bytes(content)
    assert DeploymentFile(path).read() == []
    assert "no functions are restored" in caplog.text


def test_the_file_is_private_and_replaced_in_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = DeploymentFile(tmp_path / "gateway" / "deployments.json")
    functions = [FunctionStatus(FunctionDeployment("echo", "image", labels={"a": "b"}), 1)]
    file.write(functions)
    assert file.read() == functions
    (path,) = (tmp_path / "gateway").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("control_plane.files.os.fsync", full)
    file.write([])
    assert file.read() == functions
    assert list((tmp_path / "gateway").iterdir()) == [path]
