"""Functions that are forked from a server which has imported their code."""

import asyncio
import errno
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from shutil import copy
from typing import Any

import psutil
import pytest

from control_plane.gateway.provider.forking import fork_server
from functions.host.fork_server import ROOM_VARIABLE
from tests.support.gateways import echo_function
from tests.support.gateways.echo_client import EchoClient, deployment
from tests.support.gateways.echo_gateway import FORK_SERVER, asynchronous, echo_gateway, wait_for_end

THREADED = """
import threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
"""


def servers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if ROOM_VARIABLE in child.environ()]


async def process(gateway: EchoClient, name: str = "echo") -> psutil.Process:
    async with gateway.http.get(f"/function/{name}/process") as answer:
        about: dict[str, Any] = await answer.json()
    return psutil.Process(about["pid"])


def files(process: psutil.Process) -> dict[str, str]:
    """What is open in a process: paths, sockets and pipes by number."""
    folder = Path(f"/proc/{process.pid}/fd")
    return {path.name: os.readlink(path).split(":")[0] for path in folder.iterdir()}


def no_files_left(pid: int) -> int:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@asynchronous
async def test_a_function_has_its_own_settings_and_name_and_the_server_has_none(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path) as gateway:
        await gateway.http.post("/system/secrets", json={"name": "key", "value": "42"})
        await gateway.deploy(deployment("one", COLOUR="red", secrets=["key"]))
        await gateway.deploy(deployment("two"))
        one, two = [await process(gateway, name) for name in ("one", "two")]
        (server,) = servers()
        assert (one.ppid(), two.ppid()) == (server.pid, server.pid)
        assert (one.cmdline(), two.cmdline()) == (["function", "one"], ["function", "two"])
        shown = one.environ()
        assert shown["COLOUR"] == "red"
        assert Path(shown["FAASMOE_SECRETS"], "key").read_text() == "42"
        own = set(server.environ()) - {"OPENBLAS_NUM_THREADS", ROOM_VARIABLE}
        assert set(two.environ()) == own | {"FAASMOE_FUNCTION", "FAASMOE_PARTITION", "FAASMOE_LISTEN_FD"}
        assert not {name for name in own if name.startswith("FAASMOE")}
        async with gateway.http.get("/function/two/process") as answer:
            assert (await answer.json())["environment"] == two.environ()


@asynchronous
async def test_files_do_not_pass_from_one_function_to_another(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path) as gateway:
        names = ("one", "two", "three")
        for name in names:
            await gateway.deploy(deployment(name))
        one, two, three = [await process(gateway, name) for name in names]
        (server,) = servers()
        assert (server.num_threads(), server.net_connections()) == (1, [])
        kinds = sorted(files(one).values())
        assert sorted(files(two).values()) == sorted(files(three).values()) == kinds
        assert kinds.count("pipe") == 3
        listening = [
            {each.laddr.port for each in function.net_connections() if each.status == "LISTEN"}
            for function in (one, two, three)
        ]
        assert sorted(map(len, listening)) == [1, 1, 1]
        assert len(set.union(*listening)) == 3
        assert list(files(server).values()).count("socket") == 1


@asynchronous
async def test_no_zombie_is_left_of_functions_that_end(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path) as gateway:
        await gateway.deploy(deployment())
        for end in (signal.SIGKILL, signal.SIGTERM):
            function = await process(gateway)
            function.send_signal(end)
            await wait_for_end(function.pid)
            while psutil.pid_exists(function.pid):
                await asyncio.sleep(0.01)
        async with gateway.http.post("/function/echo/crash") as answer:
            assert "exit code 3: crashing" in (await answer.json())["error"]["message"]
        await gateway.scale(0)
        (server,) = servers()
        assert server.children() == []


@asynchronous
async def test_a_server_with_old_code_is_replaced_and_ends_with_its_last_function(tmp_path: Path) -> None:
    module = Path(copy(echo_function.__file__, tmp_path / "copied_function.py"))
    os.environ["PYTHONPATH"] = os.pathsep.join((str(tmp_path), os.getcwd()))
    try:
        command = (*FORK_SERVER[:-1], module.stem)
        async with echo_gateway(tmp_path, fork_server=command) as gateway:
            await gateway.deploy(deployment("one"))
            await gateway.deploy(deployment("two"))
            one, two = await process(gateway, "one"), await process(gateway, "two")
            (old,) = servers()
            module.write_text(module.read_text().replace("crashing", "crashing anew"))
            two.kill()
            two = await process(gateway, "two")
            assert two.ppid() != old.pid
            assert (await process(gateway, "one")) == one
            async with gateway.http.post("/function/two/crash") as answer:
                assert "crashing anew" in (await answer.json())["error"]["message"]
            one.kill()
            await wait_for_end(old.pid)
            assert (await process(gateway, "one")).ppid() == (await process(gateway, "two")).ppid()
    finally:
        del os.environ["PYTHONPATH"]


@asynchronous
async def test_a_server_is_retired_after_the_fork_in_progress() -> None:
    server = await fork_server.ForkServer.start(FORK_SERVER, {"PYTHONPATH": os.getcwd()})
    (process,) = servers()
    process.suspend()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        forking = asyncio.create_task(server.fork("function", {}, listener))
        await asyncio.sleep(0.05)
        retiring = asyncio.create_task(server.retire())
        await asyncio.sleep(0.05)
        process.resume()
        async with asyncio.timeout(fork_server.ANSWER_SECONDS / 2):
            function = await forking
            await retiring
            assert function is not None
            function.send_signal(signal.SIGKILL)
            await function.wait()
    assert not server.alive


@asynchronous
async def test_a_server_with_other_settings_is_replaced(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path) as gateway:
        await gateway.deploy(deployment())
        before = (await process(gateway)).ppid()
        language = os.environ.get("LANG")
        os.environ["LANG"] = "C.UTF-8" if language != "C.UTF-8" else "C"
        try:
            await gateway.scale(0)
            function = await process(gateway)
        finally:
            os.environ.pop("LANG") if language is None else os.environ.update(LANG=language)
        assert function.ppid() != before
        assert [server.pid for server in servers()] == [function.ppid()]


@pytest.mark.parametrize("command", [("/does/not/exist",), (sys.executable, "-c", "1/0")])
@asynchronous
async def test_without_a_server_functions_are_started_as_programs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, command: Sequence[str]
) -> None:
    async with echo_gateway(tmp_path, fork_server=command) as gateway:
        await gateway.deploy(deployment("one"))
        await gateway.deploy(deployment("two"))
        for name in ("one", "two"):
            assert (await process(gateway, name)).ppid() == os.getpid()
    assert caplog.text.count("functions are started as programs") == 1


@asynchronous
async def test_nothing_is_forked_from_a_server_with_threads(tmp_path: Path) -> None:
    (tmp_path / "threaded.py").write_text(THREADED)
    os.environ["PYTHONPATH"] = os.pathsep.join((str(tmp_path), os.getcwd()))
    try:
        async with echo_gateway(tmp_path, fork_server=(*FORK_SERVER, "threaded")) as gateway:
            await gateway.deploy(deployment())
            assert (await process(gateway)).ppid() == os.getpid()
    finally:
        del os.environ["PYTHONPATH"]


@asynchronous
async def test_when_the_server_is_killed_its_functions_are_started_again(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path) as gateway:
        await gateway.deploy(deployment())
        before = await process(gateway)
        (server,) = servers()
        server.kill()
        await wait_for_end(before.pid)
        assert await gateway.echo() == (200, b"hello")
        assert (await process(gateway)).ppid() == servers()[0].pid != server.pid


async def fork_one_and_hang(gateway: EchoClient) -> tuple[psutil.Process, psutil.Process]:
    """The process of the function "one", and the suspended server that has forked it."""
    await gateway.deploy(deployment("one"))
    one = await process(gateway, "one")
    (server,) = servers()
    server.suspend()
    return one, server


@asynchronous
async def test_a_server_that_hangs_is_replaced_and_its_functions_run_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork_server, "ANSWER_SECONDS", 0.3)
    async with echo_gateway(tmp_path) as gateway:
        one, server = await fork_one_and_hang(gateway)
        await gateway.deploy(deployment("two"))
        two = await process(gateway, "two")
        assert two.ppid() != server.pid
        assert await process(gateway, "one") == one
        one.kill()
        await wait_for_end(server.pid)
        assert (await process(gateway, "one")).ppid() == two.ppid()


@asynchronous
async def test_an_answer_that_comes_too_late_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork_server, "ANSWER_SECONDS", 0.3)
    async with echo_gateway(tmp_path) as gateway:
        one, server = await fork_one_and_hang(gateway)
        await gateway.deploy(deployment("two"))
        await process(gateway, "two")
        server.resume()
        while [child for child in server.children() if child.status() != psutil.STATUS_ZOMBIE] != [one]:
            await asyncio.sleep(0.01)
        assert await process(gateway, "one") == one


@asynchronous
async def test_a_function_that_cannot_be_watched_is_started_as_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with echo_gateway(tmp_path) as gateway:
        with monkeypatch.context() as patched:
            patched.setattr(os, "pidfd_open", no_files_left)
            await gateway.deploy(deployment("one"))
            assert (await process(gateway, "one")).ppid() == os.getpid()
        (server,) = servers()
        assert server.children() == []
        await gateway.deploy(deployment("two"))
        assert (await process(gateway, "two")).ppid() == server.pid


@asynchronous
async def test_a_start_that_is_cancelled_leaves_no_process(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path) as gateway:
        await gateway.deploy(deployment())
        await process(gateway)
        (server,) = servers()
        for pause in range(20):
            await gateway.scale(0)
            calling = asyncio.create_task(gateway.scale(1))
            await asyncio.sleep(pause / 2000)
            await gateway.scale(0)
            await calling
            await gateway.scale(0)
            assert server.children() == []
