"""The whole system, run by `faasmoe up`. However it ends, it leaves no process and no temporary file."""

import json
import os
import shutil
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from yarl import URL

from control_plane.errors import PartitionError
from control_plane.partition.manifest import Manifest
from control_plane.up import partition_of
from tests.support.api.api_server import ApiClient
from tests.support.command_line import WAIT_SECONDS, faasmoe, running_command
from tests.support.models.tiny_chat_model import EXPERTS

pytestmark = pytest.mark.slow

UP = ("--port", 0, "--gateway-port", 0, "--kv-cache-mb", 8, "--database")
ASK = ("prompt", "the cat", "--tenant", "me", "--max-tokens", 12)


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    return folder


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "faasmoe.db"


def function_processes(partition: Path) -> list[psutil.Process]:
    """All processes on this machine that serve a block of the partition."""
    mine = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("FAASMOE_PARTITION") == str(partition):
                mine.append(process)
    return mine


def refuses_connections(url: str) -> bool:
    address = URL(url)
    with socket.socket() as client:
        return client.connect_ex((str(address.host), int(address.port or 0))) != 0


def test_up_on_a_checkpoint(chat_checkpoint: Path, tmp_path: Path, temporary: Path, database: Path) -> None:
    checkpoint = shutil.copytree(chat_checkpoint, tmp_path / "chat")
    partition = tmp_path / "chat.faasmoe"
    with running_command("up", checkpoint, *UP, database, temporary=temporary) as system:
        assert system.wait_for(r"partitioning .* into (.*)") == str(partition)
        server = system.wait_for(r"serving on (\S+);")
        Manifest.load(partition).verify(partition)
        streamed = faasmoe(*ASK, "--server", server)
        assert (streamed.exit_code, streamed.stderr) == (0, "")
        answer = json.loads(faasmoe(*ASK, "--json", "--server", server).stdout)
        assert streamed.stdout == answer["text"] + "\n"
        assert answer["usage"]["completion_tokens"] == 12
        report = json.loads(faasmoe("status", "--json", "--server", server).stdout)
        assert all(function["available_replicas"] for function in report["functions"])
        table = faasmoe("status", "--server", server).stdout
        assert all(function["function"] in table for function in report["functions"])


def test_up_uses_the_partition_that_it_made_before(chat_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(chat_checkpoint, tmp_path / "chat")
    said: list[str] = []
    partition = partition_of(checkpoint, said.append)
    assert len(said) == 1
    before = _identity(partition / "manifest.json")
    assert partition_of(checkpoint, said.append) == partition_of(partition, said.append) == partition
    assert len(said) == 1
    assert _identity(partition / "manifest.json") == before


def _identity(path: Path) -> tuple[int, int]:
    """What changes when a file is written again; reading it changes the time of its last access."""
    return path.stat().st_ino, path.stat().st_mtime_ns


def test_gateway_and_control_plane_in_separate_processes(
    chat_partition: Path, temporary: Path, database: Path
) -> None:
    with running_command("gateway", chat_partition, "--port", 0, temporary=temporary) as gateway:
        gateway_url = gateway.wait_for(r"gateway on (\S+);")
        assert faasmoe("deploy", chat_partition, "--gateway", gateway_url).exit_code == 0
        options = ("--gateway", gateway_url, "--port", 0, "--open", "--database", database)
        with running_command("serve", chat_partition, *options, temporary=temporary) as control_plane:
            server = control_plane.wait_for(r"serving on (\S+);")
            assert faasmoe(*ASK, "--server", server).exit_code == 0
            assert control_plane.end() == 0
        # The gateway runs the functions.
        assert len(function_processes(chat_partition)) == len(EXPERTS)
        assert gateway.end() == 0
    assert function_processes(chat_partition) == []
    assert all(refuses_connections(url) for url in (gateway_url, server))
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_processes(
    chat_partition: Path, temporary: Path, database: Path, number: signal.Signals
) -> None:
    with running_command("up", chat_partition, *UP, database, temporary=temporary) as system:
        gateway = system.wait_for(r"gateway on (\S+)")
        server = system.wait_for(r"serving on (\S+);")
        assert faasmoe(*ASK, "--server", server).exit_code == 0
        assert len(function_processes(chat_partition)) == len(EXPERTS)
        assert system.end(number) == 0
    assert function_processes(chat_partition) == []
    assert all(refuses_connections(url) for url in (gateway, server))
    assert not list(temporary.iterdir())


@pytest.mark.parametrize(
    ("line", "number"), [("gateway on", signal.SIGINT), ("deployed 4 functions", signal.SIGTERM)]
)
def test_a_signal_during_the_start(
    chat_partition: Path, temporary: Path, database: Path, line: str, number: signal.Signals
) -> None:
    with running_command("up", chat_partition, *UP, database, temporary=temporary) as system:
        system.wait_for(line)
        assert system.end(number) == 0
    assert function_processes(chat_partition) == []
    assert not list(temporary.iterdir())


def test_functions_end_when_the_gateway_is_killed(
    chat_partition: Path, temporary: Path, database: Path
) -> None:
    with running_command("up", chat_partition, *UP, database, temporary=temporary) as system:
        gateway = system.wait_for(r"gateway on (\S+)")
        server = system.wait_for(r"serving on (\S+);")
        assert faasmoe(*ASK, "--server", server).exit_code == 0
        functions = function_processes(chat_partition)
        assert len(functions) == len(EXPERTS)
        assert system.end(signal.SIGKILL) == -signal.SIGKILL
        _, alive = psutil.wait_procs(functions, WAIT_SECONDS)
        assert alive == []
    assert all(refuses_connections(url) for url in (gateway, server))


def test_a_partition_older_than_its_checkpoint_is_refused(chat_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(chat_checkpoint, tmp_path / "chat")
    folder = partition_of(checkpoint, lambda line: None)
    assert partition_of(checkpoint, lambda line: None) == folder
    later = (folder / "manifest.json").stat().st_mtime + 1
    os.utime(checkpoint / "model.safetensors", (later, later))
    with pytest.raises(PartitionError, match="has changed after"):
        partition_of(checkpoint, lambda line: None)


def test_small_files_that_have_changed_are_taken_over(chat_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(chat_checkpoint, tmp_path / "chat")
    folder = partition_of(checkpoint, lambda line: None)
    (checkpoint / "chat_template.jinja").write_text("changed")
    later = (folder / "manifest.json").stat().st_mtime + 1
    os.utime(checkpoint / "chat_template.jinja", (later, later))
    said: list[str] = []
    assert partition_of(checkpoint, said.append) == partition_of(checkpoint, said.append) == folder
    assert said == [f"updated chat_template.jinja, stored_tokenizer.json in {folder}"]
    assert (folder / "chat_template.jinja").read_text() == "changed"
    Manifest.load(folder).verify(folder)


def test_requests_import_nothing(
    chat_partition: Path, temporary: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that is imported in a request is a file that may not be there to open when there are many."""
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")  # Each import prints a line to standard error.
    with running_command("up", chat_partition, *UP, database, temporary=temporary) as system:
        server = system.wait_for(r"serving on (\S+);")
        api = ApiClient(URL(server))
        model = Manifest.load(chat_partition).name
        assert api.ask("POST", "/v1/completions", {"model": model, "prompt": "the cat"})[0] == 200
        for path, body in (
            ("/v1/completions", {"prompt": 5}),
            ("/v1/completions", {"prompt": ["a", "b"], "temperature": 1.0, "seed": 1, "logprobs": 1}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]}),
        ):
            api.ask("POST", path, {"model": model, "max_tokens": 3, **body})
        for path in ("/metrics", "/status", "/v1/models", "/nowhere"):
            api.answer("GET", path)
        assert "import time:" not in printed_so_far(system.process)


def printed_so_far(process: subprocess.Popen[str]) -> str:
    """What a process has written since its last line that was read."""
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    try:
        return process.stdout.read() or ""
    finally:
        os.set_blocking(process.stdout.fileno(), True)
