"""Functions that crash, hang or ignore signals."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from control_plane.errors import FunctionUnavailable
from control_plane.faas.types import FunctionDeployment
from control_plane.gateway.provider.function import pause_after_deaths
from control_plane.gateway.provider.image import LocalImage
from control_plane.gateway.provider.process import Timeouts
from control_plane.gateway.provider.provider import LocalProvider
from control_plane.gateway.provider.secret_store import SecretStore
from tests.support.gateways.echo_client import deployment
from tests.support.gateways.echo_gateway import asynchronous, echo_gateway


@asynchronous
async def test_a_crash_during_a_call_gives_502_and_the_next_call_restarts_the_function(
    tmp_path: Path,
) -> None:
    async with echo_gateway(tmp_path) as gateway:
        await gateway.deploy(deployment())
        pid = (await gateway.ask_process())["pid"]
        async with gateway.http.post("/function/echo/crash") as answer:
            assert answer.status == 502
            assert (await answer.json())["error"]["code"] == "function_failed"
        assert await gateway.echo() == (200, b"hello")
        assert (await gateway.ask_process())["pid"] != pid


@asynchronous
async def test_the_error_of_a_killed_function_names_the_likely_reason(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path) as gateway:
        await gateway.deploy(deployment())
        async with gateway.held_call(tmp_path / "pipe", "POST") as held:
            os.kill((await gateway.ask_process())["pid"], signal.SIGKILL)
            status, body = await held
        assert status == 502
        assert "killed (signal 9), perhaps for lack of memory: serving" in body


def test_the_first_deaths_cost_no_pause_and_no_pause_is_long() -> None:
    assert [pause_after_deaths(deaths) for deaths in range(1, 8)] == [0, 0, 1, 2, 4, 5, 5]


@asynchronous
async def test_a_function_that_dies_again_and_again_is_not_started_at_once(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path) as gateway:
        await gateway.deploy(deployment())
        for _ in range(3):
            async with gateway.http.post("/function/echo/crash") as answer:
                assert answer.status == 502
                message = (await answer.json())["error"]["message"]
                assert message == "function echo broke off the call: exit code 3: crashing"
        async with gateway.http.post("/function/echo") as answer:
            assert answer.status == 503
            assert answer.headers["Retry-After"] == "1"
            assert (await answer.json())["error"]["message"] == (
                "function echo keeps dying: 3 times in a row within 10 s of its start, exit code 3: crashing"
            )
        async with asyncio.timeout(10):
            while (await gateway.echo())[0] == 503:
                await asyncio.sleep(0.05)
        assert await gateway.echo() == (200, b"hello")


@asynchronous
async def test_a_crashed_function_has_one_replica_and_none_available(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path) as gateway:
        await gateway.deploy(deployment())
        pid = (await gateway.ask_process())["pid"]
        os.kill(pid, signal.SIGKILL)
        while (status := await gateway.describe())["availableReplicas"]:
            pass
        assert status["replicas"] == 1


@asynchronous
async def test_a_function_that_crashes_at_every_start_gives_503_with_its_last_line(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path) as gateway:
        await gateway.deploy(deployment(ECHO_CRASH="1", labels={"com.openfaas.scale.min": "0"}))
        answers = [await gateway.http.post("/function/echo") for _ in range(2)]
        for answer in answers:
            assert answer.status == 503
            assert (await answer.json())["error"] == {
                "code": "function_unavailable",
                "message": "function echo crashed at each of 3 starts, exit code 1: there is no block here",
            }
        # The second call was refused without another round of starts.
        assert await gateway.log_lines() == ["there is no block here"] * 3

        assert await gateway.deploy(deployment()) == 200
        assert await gateway.echo() == (200, b"hello")


@asynchronous
async def test_a_function_that_is_never_ready_gives_503_at_the_deadline(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path, timeouts=Timeouts(start=0.5, call=20, stop=10)) as gateway:
        await gateway.deploy(deployment(ECHO_READY_FILE=str(tmp_path / "never")))
        async with gateway.http.post("/function/echo") as answer:
            assert answer.status == 503
            assert "not ready after 0.5 s" in (await answer.json())["error"]["message"]


@asynchronous
async def test_a_call_that_takes_too_long_gives_504(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    async with echo_gateway(tmp_path, timeouts=Timeouts(start=20, call=0.3, stop=10)) as gateway:
        await gateway.deploy(deployment())
        async with gateway.http.get("/function/echo/hold", params={"pipe": str(pipe)}) as answer:
            assert answer.status == 504
            assert (await answer.json())["error"]["code"] == "invocation_timeout"


@asynchronous
async def test_a_function_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path, timeouts=Timeouts(start=20, call=20, stop=0.2)) as gateway:
        await gateway.deploy(deployment(ECHO_STUBBORN="1"))
        pid = (await gateway.ask_process())["pid"]
        assert await gateway.scale(0) == 202
        assert not Path(f"/proc/{pid}").exists()


@asynchronous
async def test_a_missing_program_is_an_error(tmp_path: Path) -> None:
    image = LocalImage(
        "image", ["/no/such/program"], {}, {"block-0"}, ["FAASMOE_FUNCTION"], verify=lambda _: None
    )
    async with LocalProvider(image, SecretStore(tmp_path)) as provider:
        variables = {"FAASMOE_FUNCTION": "block-0"}
        await provider.deploy(FunctionDeployment("echo", "image", env_vars=variables))
        with pytest.raises(FunctionUnavailable, match="could not be started"):
            async with provider.lease("echo"):
                pass
