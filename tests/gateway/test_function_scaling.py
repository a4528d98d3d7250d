"""Functions scale to zero, start again and are replaced while they are called."""

import asyncio
from pathlib import Path

import pytest

from tests.support.gateways.echo_client import deployment
from tests.support.gateways.echo_gateway import asynchronous, echo_gateway, wait_for_end


@asynchronous
async def test_concurrent_cold_calls_start_one_process(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path) as gateway:
        await gateway.deploy(deployment(labels={"com.openfaas.scale.min": "0"}))
        assert (await gateway.describe())["replicas"] == 0
        bodies = [b"%d" % number for number in range(20)]
        answers = await asyncio.gather(*(gateway.echo(body) for body in bodies))
        assert answers == [(200, body) for body in bodies]
        assert (await gateway.log_lines()).count("serving") == 1


@asynchronous
async def test_calls_wait_until_the_function_is_ready(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    async with echo_gateway(tmp_path) as gateway:
        await gateway.deploy(deployment(ECHO_READY_FILE=str(ready)))
        call = asyncio.create_task(gateway.echo())
        await gateway.wait_for_log_line("serving")
        status = await gateway.describe()
        assert (status["replicas"], status["availableReplicas"]) == (1, 0)
        assert not call.done()
        ready.touch()
        assert await call == (200, b"hello")


@asynchronous
async def test_a_start_continues_when_one_of_two_callers_leaves(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    async with echo_gateway(tmp_path) as gateway:
        await gateway.deploy(deployment(ECHO_READY_FILE=str(ready), labels={"com.openfaas.scale.min": "0"}))
        impatient, patient = (asyncio.create_task(gateway.echo()) for _ in range(2))
        await gateway.wait_for_log_line("serving")
        impatient.cancel()
        ready.touch()
        assert await patient == (200, b"hello")
        assert await gateway.log_lines() == ["serving", "echo 5"]


@asynchronous
async def test_a_waiting_call_survives_scaling_to_zero_and_updates(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path) as gateway:
        await gateway.deploy(deployment(ECHO_READY_FILE=str(tmp_path / "never")))
        call = asyncio.create_task(gateway.echo())
        await gateway.wait_for_log_line("serving")
        assert await gateway.scale(0) == 202
        assert not call.done()
        assert await gateway.deploy(deployment()) == 200
        assert await call == (200, b"hello")


@asynchronous
async def test_a_waiting_call_of_a_function_that_is_removed_gives_404(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path) as gateway:
        await gateway.deploy(deployment(ECHO_READY_FILE=str(tmp_path / "never")))
        call = asyncio.create_task(gateway.echo())
        await gateway.wait_for_log_line("serving")
        assert await gateway.remove() == 200
        assert (await call)[0] == 404


@asynchronous
async def test_a_gateway_that_ends_while_a_function_starts_leaves_no_process(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path) as gateway:
        await gateway.deploy(deployment(ECHO_READY_FILE=str(tmp_path / "never")))


@asynchronous
async def test_scaling_to_zero_waits_for_calls_and_the_next_call_starts_a_process(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path) as gateway:
        await gateway.deploy(deployment())
        async with gateway.held_call(tmp_path / "pipe") as held:
            old = await gateway.ask_process()
            scaling = asyncio.create_task(gateway.scale(0))
            while (await gateway.describe())["replicas"]:
                pass
            assert (await gateway.ask_process())["pid"] != old["pid"]
            assert not scaling.done()
        assert await held == (200, str(old["pid"]))
        assert await scaling == 202
        await wait_for_end(old["pid"])


@asynchronous
async def test_a_function_scaled_to_zero_has_no_process_and_one_scaled_up_has(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path) as gateway:
        await gateway.deploy(deployment())
        pid = (await gateway.ask_process())["pid"]
        assert await gateway.scale(0) == 202
        assert not Path(f"/proc/{pid}").exists()
        status = await gateway.describe()
        assert (status["replicas"], status["availableReplicas"]) == (0, 0)
        assert "usage" not in status
        assert await gateway.scale(1) == 202
        assert (await gateway.describe())["replicas"] == 1
        assert await gateway.scale(2) == 400


@asynchronous
async def test_an_update_replaces_the_process_and_calls_in_flight_end_on_the_old_one(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path) as gateway:
        await gateway.deploy(deployment())
        async with gateway.held_call(tmp_path / "pipe") as held:
            old = await gateway.ask_process()
            assert await gateway.deploy(deployment(COLOUR="red")) == 200
            new = await gateway.ask_process()
            assert new["environment"]["COLOUR"] == "red"
            assert new["pid"] != old["pid"]
        assert await held == (200, str(old["pid"]))
        await wait_for_end(old["pid"])


@asynchronous
async def test_an_idle_function_scales_to_zero(tmp_path: Path) -> None:
    labels = {"com.openfaas.scale.zero": "true", "com.openfaas.scale.zero-duration": "200ms"}
    async with echo_gateway(tmp_path) as gateway:
        await gateway.deploy(deployment(labels=labels))
        pid = (await gateway.ask_process())["pid"]
        await wait_for_end(pid)
        assert (await gateway.describe())["replicas"] == 0
        assert await gateway.echo() == (200, b"hello")


@asynchronous
async def test_the_gateway_sets_the_idle_time_without_a_label(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path, idle_after=0.2) as gateway:
        await gateway.deploy(deployment(labels={"com.openfaas.scale.zero": "true"}))
        await wait_for_end((await gateway.ask_process())["pid"])


@asynchronous
async def test_a_function_with_a_call_in_flight_is_not_idle(tmp_path: Path) -> None:
    labels = {"com.openfaas.scale.zero": "true", "com.openfaas.scale.zero-duration": "50ms"}
    async with echo_gateway(tmp_path) as gateway:
        await gateway.deploy(deployment(labels=labels))
        async with gateway.held_call(tmp_path / "pipe") as held:
            await asyncio.sleep(0.2)
            assert (await gateway.describe())["availableReplicas"] == 1
        assert (await held)[0] == 200


@asynchronous
async def test_the_time_of_a_start_is_not_idle_time(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    async with echo_gateway(tmp_path, idle_after=0.1) as gateway:
        labels = {"com.openfaas.scale.zero": "true"}
        await gateway.deploy(deployment(labels=labels, ECHO_READY_FILE=str(ready)))
        call = asyncio.create_task(gateway.echo())
        await gateway.wait_for_log_line("serving")
        await asyncio.sleep(0.2)
        ready.touch()
        assert await call == (200, b"hello")
        assert (await gateway.log_lines()).count("serving") == 1


@asynchronous
async def test_probes_neither_start_a_function_nor_count_as_use(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path) as gateway:
        await gateway.deploy(deployment(labels={"com.openfaas.scale.min": "0"}))
        for path in ("_/health", "_/ready", "metrics", "_/residency"):
            for method in ("GET", "PUT", "DELETE"):
                async with gateway.http.request(method, f"/function/echo/{path}") as answer:
                    assert answer.status == 503
        assert (await gateway.describe())["replicas"] == 0
        await gateway.echo()
        async with gateway.http.get("/function/echo/_/ready") as answer:
            assert answer.status == 200
        async with gateway.http.put("/function/echo/_/residency", data=b"limit") as answer:
            assert (answer.status, await answer.read()) == (200, b"limit")
        assert (await gateway.describe())["invocationCount"] == 1


@pytest.mark.parametrize("path", ["metrics", "_/residency"])
@asynchronous
async def test_probes_do_not_keep_a_function_awake(tmp_path: Path, path: str) -> None:
    labels = {"com.openfaas.scale.zero": "true", "com.openfaas.scale.zero-duration": "100ms"}
    async with echo_gateway(tmp_path) as gateway:
        await gateway.deploy(deployment(labels=labels))
        await gateway.echo()
        status = 200
        while status == 200:
            async with gateway.http.get(f"/function/echo/{path}") as answer:
                status = answer.status
        assert (await gateway.describe())["replicas"] == 0
