"""The embedded gateway emulates faasd."""

import asyncio
import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from control_plane.gateway.provider.emulation import FAASD
from tests.support.gateways.echo_client import EchoClient, deployment
from tests.support.gateways.echo_gateway import asynchronous, echo_gateway, wait_for_end

pytestmark = pytest.mark.slow

AT_ONCE = replace(FAASD, ignored_sigterm_seconds=0.1)
REQUEST = b"GET /_/health HTTP/1.1\r\nHost: f\r\n\r\n"


@asynchronous
async def test_the_info_names_the_community_edition(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path, behaviour=FAASD) as gateway, gateway.http.get("/system/info") as answer:
        provider = (await answer.json())["provider"]
        assert (provider["provider"], provider["orchestration"]) == ("faasd-ce", "containerd")


@asynchronous
async def test_functions_beyond_the_limit_are_refused(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path, behaviour=AT_ONCE) as gateway:
        # Functions that crash at once take less time than functions that run.
        for number in range(15):
            assert await gateway.deploy(deployment(f"f{number}", ECHO_CRASH="1")) == 202
        assert await gateway.deploy(deployment()) == 400
        again = deployment("f3", ECHO_CRASH="1", ECHO_BANNER="again")
        async with asyncio.timeout(10):
            while (status := await gateway.deploy(again)) == 500:
                pass  # It is just being started once more.
        assert status == 200


@asynchronous
async def test_zero_replicas_are_accepted_without_effect(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path, idle_after=0.05, behaviour=FAASD) as gateway:
        await gateway.deploy(deployment(labels={"com.openfaas.scale.zero": "true"}))
        pid = (await warm(gateway))["pid"]
        assert await gateway.scale(0) == 200
        assert (await gateway.describe())["replicas"] == 1
        assert (await gateway.ask_process())["pid"] == pid
        assert await gateway.scale(1) == 200


@asynchronous
async def test_the_list_does_not_say_how_many_replicas_are_available_or_what_they_use(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path, behaviour=FAASD) as gateway:
        await gateway.deploy(deployment())
        async with gateway.http.get("/system/functions") as answer:
            (function,) = await answer.json()
        assert function["replicas"] == 1
        assert not {"availableReplicas", "usage"} & function.keys()
        await gateway.wait_for_log_line("serving")


@pytest.mark.parametrize("change", ["remove", "update"])
@asynchronous
async def test_a_function_vanishes_without_a_reset(tmp_path: Path, change: str) -> None:
    async with echo_gateway(tmp_path, behaviour=FAASD) as gateway:
        await gateway.deploy(deployment())
        pid = (await warm(gateway))["pid"]
        with direct_connection(pid) as caller, direct_connection(pid) as patient:
            ask(caller)
            caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 500)
            if change == "remove":
                assert await gateway.remove() == 200
            else:
                assert await gateway.deploy(deployment(COLOUR="red")) == 200
            await wait_for_end(pid)
            caller.sendall(REQUEST)
            patient.settimeout(1)
            with pytest.raises(TimeoutError):  # Neither EOF nor a reset ...
                await asyncio.to_thread(patient.recv, 1)
            with pytest.raises(OSError, match="timed out") as caught:
                await asyncio.to_thread(caller.recv, 1)
            # ... and no acknowledgement: the system gives up by itself, as TCP_USER_TIMEOUT asks.
            assert caught.value.errno == errno.ETIMEDOUT
            with socket.socket() as late:
                late.settimeout(0.5)
                with pytest.raises(TimeoutError):
                    await asyncio.to_thread(late.connect, patient.getpeername())


@asynchronous
async def test_a_function_that_ignores_sigterm_cannot_be_removed_at_once(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path, behaviour=AT_ONCE) as gateway:
        await gateway.deploy(deployment(ECHO_STUBBORN="1"))
        await gateway.wait_for_log_line("serving")
        assert await gateway.remove() == 500
        assert await gateway.deploy(deployment(COLOUR="red")) == 500
        async with gateway.http.get("/system/functions") as answer:
            assert len(await answer.json()) == 1


@asynchronous
async def test_without_a_provider_everything_is_answered_with_404(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path, behaviour=FAASD) as gateway:
        await gateway.deploy(deployment())
        pid = (await warm(gateway))["pid"]
        gateway.provider.away = True
        assert await gateway.echo() == (404, b"not found\n")
        async with gateway.http.get("/system/functions") as answer:
            assert answer.status == 404
        gateway.provider.away = False
        assert (await gateway.ask_process())["pid"] == pid


async def warm(gateway: EchoClient) -> dict[str, Any]:
    """Wait until calls are answered; returns the process that answers."""
    async with asyncio.timeout(20):
        while (await gateway.echo())[0] == 500:
            await asyncio.sleep(0.01)
    return await gateway.ask_process()


@contextmanager
def direct_connection(pid: int) -> Iterator[socket.socket]:
    """A connection to a function that does not lead through the gateway."""
    (port,) = {each.laddr.port for each in psutil.Process(pid).net_connections() if each.status == "LISTEN"}
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        yield connection


def ask(connection: socket.socket) -> None:
    connection.sendall(REQUEST)
    assert connection.recv(65536).startswith(b"HTTP/1.1 200")


@asynchronous
async def test_calls_of_a_starting_function_fail_at_once(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    async with echo_gateway(tmp_path, behaviour=FAASD) as gateway:
        await gateway.deploy(deployment(ECHO_READY_FILE=str(ready)))
        status, body = await gateway.echo()
        assert status == 500
        assert b"function_starting" in body
        ready.touch()
        while (answer := await gateway.echo())[0] == 500:
            pass
        assert answer == (200, b"hello")


@asynchronous
async def test_functions_get_chunked_bodies(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path, behaviour=FAASD) as gateway:
        await gateway.deploy(deployment())
        while (await gateway.echo())[0] == 500:
            pass
        async with gateway.http.post("/function/echo/process", data=b"x" * 100) as answer:
            headers = {name.lower(): value for name, value in (await answer.json())["headers"]}
        assert headers["transfer-encoding"] == "chunked"
        assert "content-length" not in headers
