"""The whole system as its users run it, and how it ends: nothing of it is left, whatever ends it."""

import json
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from yarl import URL

from control_plane.partition.manifest import Manifest
from tests.command_line import RunningCommand, faasmoe, running_command

pytest_plugins = "tests.chat_fixtures"

WAIT_SECONDS = 30
UP = ("--port", 0, "--gateway-port", 0, "--kv-cache-mb", 8)
ASK = ("prompt", "the cat", "--tenant", "me", "--max-tokens", 12)


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    return folder


def refuses_connections(url: str) -> bool:
    address = URL(url)
    with socket.socket() as client:
        return client.connect_ex((str(address.host), int(address.port or 0))) != 0


def check_nothing_is_left(functions: list[psutil.Process], *urls: str) -> None:
    _, alive = psutil.wait_procs(functions, WAIT_SECONDS)
    assert alive == []
    assert all(refuses_connections(url) for url in urls)


def test_up_on_a_checkpoint(chat_checkpoint: Path, tmp_path: Path, temporary: Path) -> None:
    checkpoint = shutil.copytree(chat_checkpoint, tmp_path / "chat")
    partition = tmp_path / "chat.faasmoe"
    with running_command("up", checkpoint, *UP, temporary=temporary) as system:
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
    # The second time it finds the partition.
    before = (partition / "manifest.json").stat()
    with running_command("up", checkpoint, *UP, temporary=temporary) as system:
        server = system.wait_for(r"serving on (\S+);")
        assert faasmoe(*ASK, "--server", server).stdout == streamed.stdout
    assert (partition / "manifest.json").stat() == before


def test_gateway_and_control_plane_apart(chat_partition: Path, temporary: Path) -> None:
    with running_command("gateway", chat_partition, "--port", 0, temporary=temporary) as gateway:
        gateway_url = gateway.wait_for(r"gateway on (\S+);")
        assert faasmoe("deploy", chat_partition, "--gateway", gateway_url).exit_code == 0
        options = ("--gateway", gateway_url, "--port", 0)
        with running_command("serve", chat_partition, *options, temporary=temporary) as control_plane:
            server = control_plane.wait_for(r"serving on (\S+);")
            assert faasmoe(*ASK, "--server", server).exit_code == 0
            control_plane.process.send_signal(signal.SIGTERM)
            assert control_plane.process.wait(WAIT_SECONDS) == 0
            # The functions are the gateway's.
            functions = gateway.functions()
            assert len(functions) == len(Manifest.load(chat_partition).blocks)
        gateway.process.send_signal(signal.SIGINT)
        assert gateway.process.wait(WAIT_SECONDS) == 0
        check_nothing_is_left(functions, gateway_url, server)
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_up(chat_partition: Path, temporary: Path, end: signal.Signals) -> None:
    with running_command("up", chat_partition, *UP, temporary=temporary) as system:
        gateway = system.wait_for(r"gateway on (\S+)")
        server = system.wait_for(r"serving on (\S+);")
        assert faasmoe(*ASK, "--server", server).exit_code == 0
        functions = system.functions()
        assert len(functions) == len(Manifest.load(chat_partition).blocks)
        system.process.send_signal(end)
        assert system.process.wait(WAIT_SECONDS) == (-end if end == signal.SIGKILL else 0)
        check_nothing_is_left(functions, gateway, server)
    # Nobody can clean up after a SIGKILL: what is left is a folder without a secret in it.
    assert not [path for path in temporary.rglob("*") if path.is_file()]
    if end != signal.SIGKILL:
        assert not list(temporary.iterdir())


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_starts(chat_partition: Path, temporary: Path, end: signal.Signals) -> None:
    with running_command("up", chat_partition, *UP, temporary=temporary) as system:
        gateway = system.wait_for(r"gateway on (\S+)")
        # Before functions are ready, and before the model is loaded.
        functions = system.functions()
        system.process.send_signal(end)
        assert system.process.wait(WAIT_SECONDS) == 0
        check_nothing_is_left(functions, gateway)
    assert not list(temporary.iterdir())


def test_prompts_under_way_end_with_the_system(chat_partition: Path, temporary: Path) -> None:
    with running_command("up", chat_partition, *UP, temporary=temporary) as system:
        server = system.wait_for(r"serving on (\S+);")
        long = ("prompt", "the cat", "--tenant", "me", "--max-tokens", 4000, "--server", server)
        with running_command(*long, temporary=temporary) as prompt:
            assert prompt.process.stdout is not None
            assert prompt.process.stdout.read(1)
            functions = system.functions()
            system.process.send_signal(signal.SIGTERM)
            assert system.process.wait(WAIT_SECONDS) == 0
            check_nothing_is_left(functions, server)
            assert prompt.process.wait(WAIT_SECONDS) == 1
            assert prompt.wait_for("Error: ")
