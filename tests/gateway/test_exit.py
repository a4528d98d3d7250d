"""However a gateway ends, its functions end with it."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.support.gateways.echo_client import EchoClient, deployment
from tests.support.gateways.echo_gateway import asynchronous, wait_for_end


@asynccontextmanager
async def gateway_process(folder: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, EchoClient]]:
    command = (sys.executable, "-m", "tests.support.gateways.echo_gateway", str(folder))
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    try:
        assert process.stdout is not None
        url = (await process.stdout.readline()).decode().strip()
        async with aiohttp.ClientSession(url) as session:
            yield process, EchoClient(session)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@asynchronous
async def test_no_function_outlives_its_gateway(tmp_path: Path, end: signal.Signals) -> None:
    async with gateway_process(tmp_path) as (process, gateway):
        await gateway.deploy(deployment())
        pid = (await gateway.ask_process())["pid"]
        process.send_signal(end)
        await wait_for_end(pid)
        await process.wait()


@asynchronous
async def test_after_ctrl_c_the_calls_in_flight_are_answered(tmp_path: Path) -> None:
    async with gateway_process(tmp_path) as (process, gateway):
        await gateway.deploy(deployment())
        pid = (await gateway.ask_process())["pid"]
        follow = {"name": "echo", "follow": "true"}
        async with (
            gateway.held_call(tmp_path / "pipe") as held,
            gateway.http.get("/system/logs", params=follow) as log,
        ):
            assert b"serving" in await log.content.readline()
            os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it, to the foreground process group
            # Log streams end at once, otherwise they would delay the exit.
            assert await log.content.read() == b""
            assert not held.done()
        assert await held == (200, str(pid))
        assert await asyncio.wait_for(process.wait(), 20) == 0
