"""The output of functions is stored, and read by faas-cli."""

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from control_plane.gateway.provider.log import MAX_CHARACTERS, FunctionLog
from tests.support.gateways.echo_client import deployment
from tests.support.gateways.echo_gateway import asynchronous, echo_gateway


@asynchronous
async def test_logs_can_be_limited_and_followed(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path) as gateway:
        await gateway.deploy(deployment())
        await gateway.echo(b"1")
        middle = datetime.now(UTC).isoformat()
        await gateway.echo(b"22")
        assert await gateway.log_lines() == ["serving", "echo 1", "echo 2"]
        assert await gateway.log_lines(tail="-1") == ["serving", "echo 1", "echo 2"]
        assert await gateway.log_lines(tail="2") == ["echo 1", "echo 2"]
        assert await gateway.log_lines(since=middle) == ["echo 2"]
        following = asyncio.create_task(gateway.log_lines(since=middle, follow="true"))
        await gateway.echo(b"333")
        assert await gateway.remove() == 200
        assert await following == ["echo 2", "echo 3"]


@asynchronous
async def test_a_log_message_has_the_fields_that_faas_cli_prints(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path) as gateway:
        await gateway.deploy(deployment())
        pid = (await gateway.ask_process())["pid"]
        async with gateway.http.get("/system/logs", params={"name": "echo"}) as answer:
            message = json.loads(await answer.content.readline())
        assert datetime.fromisoformat(message.pop("timestamp")) <= datetime.now(UTC)
        assert message == {
            "name": "echo",
            "namespace": "openfaas-fn",
            "instance": f"echo-{pid}",
            "text": "serving",
        }


@pytest.mark.parametrize(
    "query",
    [
        {"since": "yesterday"},
        {"since": "2026-01-01T00:00:00"},
        {"since": "12345"},
        {"tail": "few"},
        {"tail": "1.0"},
    ],
)
@asynchronous
async def test_an_invalid_log_query_gives_422(tmp_path: Path, query: dict[str, str]) -> None:
    async with echo_gateway(tmp_path) as gateway:
        await gateway.deploy(deployment(labels={"com.openfaas.scale.min": "0"}))
        async with gateway.http.get("/system/logs", params={"name": "echo", **query}) as answer:
            assert answer.status == 422


@asynchronous
async def test_a_log_keeps_the_newest_lines_also_for_slow_followers() -> None:
    log = FunctionLog("echo", capacity=3)
    following = log.read(follow=True)
    log.append("echo-1", "0")
    assert (await anext(following)).text == "0"
    for number in range(1, 9):
        log.append("echo-1", str(number))
    log.close()
    assert [message.text async for message in log.read()] == ["6", "7", "8"]
    assert [message.text async for message in following] == ["6", "7", "8"]


@asynchronous
async def test_a_long_line_is_cut(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path) as gateway:
        await gateway.deploy(deployment(ECHO_BANNER="x" * 60_000))
        await gateway.echo()
        await gateway.wait_for_log_line("echo 5")
        assert await gateway.log_lines() == ["x" * 16384, "serving", "echo 5"]


@asynchronous
async def test_a_log_keeps_a_limited_amount_of_text() -> None:
    log = FunctionLog("echo")
    for number in range(100):
        log.append("echo-1", f"{number}" + "x" * 16384)
    kept = [message.text async for message in log.read()]
    assert sum(map(len, kept)) <= MAX_CHARACTERS
    assert len(kept) > 60
    assert kept[-1].startswith("99")


@pytest.mark.parametrize("text", [b"\n", b"no end of line, ", b"short\n", b"\xff\x00"])
@asynchronous
async def test_a_flood_of_output_leaves_the_gateway_responsive(tmp_path: Path, text: bytes) -> None:
    async with echo_gateway(tmp_path) as gateway:
        await gateway.deploy(deployment())
        async with gateway.http.post("/function/echo/flood", data=text) as answer:
            assert answer.status == 200
        for _ in range(50):
            async with asyncio.timeout(1), gateway.http.get("/function/echo/_/health") as answer:
                assert answer.status == 200
        assert len(await gateway.log_lines()) <= 1000
        assert await gateway.remove() == 200
