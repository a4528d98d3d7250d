"""The only gateway is killed, with its functions, and another one is started in its place."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from yarl import URL

from control_plane.app import control_plane
from control_plane.config import ServeConfig
from control_plane.deployment.deploy import deploy_all
from control_plane.faas.client import Gateway
from control_plane.faas.gateway_access import GatewayAccess
from control_plane.partition.manifest import Manifest
from tests.support.api.api_server import COMPLETION, ApiClient, eventually, in_thread
from tests.support.command_line import RunningCommand, running_command

pytestmark = pytest.mark.slow

ASK = {"prompt": "the cat sat", "max_tokens": 12, "temperature": 0, "ignore_eos": True}
CALLERS = 3


async def deploy(partition: Path, url: URL) -> None:
    async with Gateway.connect(url, None) as gateway:
        async for _ in deploy_all(Manifest.load(partition), [gateway]):
            pass


def test_requests_continue_when_a_gateway_returns_without_functions(
    chat_partition: Path, tmp_path: Path
) -> None:
    def started(name: str, port: int | None) -> tuple[RunningCommand, URL]:
        folder = tmp_path / name
        folder.mkdir()
        command = gateways.enter_context(
            running_command("gateway", chat_partition, "--port", port or 0, temporary=folder)
        )
        return command, URL(command.wait_for(r"(http://[\w.:]+);"))

    def answer() -> str:
        return str(api.post(COMPLETION, **ASK)["choices"][0]["text"])

    config = ServeConfig(port=0, kv_cache_mb=8, threads=1, open=True, database=str(tmp_path / "db"))
    with ExitStack() as gateways, ThreadPoolExecutor(CALLERS) as threads:
        command, url = started("before", None)
        asyncio.run(deploy(chat_partition, url))
        with in_thread(control_plane(chat_partition, config, [GatewayAccess(url)])) as address:
            api = ApiClient(address)
            wanted = answer()
            begun = [threads.submit(answer) for _ in range(2 * CALLERS)]
            begun[0].result()
            command.process.kill()
            command.process.wait()
            begun += [threads.submit(answer) for _ in range(2 * CALLERS)]
            started("after", url.port)
            assert {each.result() for each in begun} == {wanted}
            eventually(lambda: {each["deployed"] for each in api.status()["functions"]}, {True})
