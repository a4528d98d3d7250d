"""One partition on two gateway processes, of which one is killed."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from yarl import URL

from control_plane.app import control_plane
from control_plane.config import ServeConfig
from control_plane.deployment import failover
from control_plane.deployment.deploy import Change, deploy_all
from control_plane.faas.client import Gateway
from control_plane.faas.gateway_access import GatewayAccess
from control_plane.partition.manifest import Manifest
from tests.support.api.api_server import COMPLETION, ApiClient, eventually, in_thread
from tests.support.command_line import RunningCommand, running_command

pytestmark = pytest.mark.slow

ASK = {"prompt": "the cat sat", "max_tokens": 12, "temperature": 0, "ignore_eos": True}
CALLERS = 3


@dataclass(frozen=True)
class Box:
    """A gateway's process and its address."""

    command: RunningCommand
    url: URL

    def kill(self) -> None:
        """Kill the gateway, as a power failure would; its functions end with it."""
        self.command.process.kill()
        self.command.process.wait()


@dataclass(frozen=True)
class Site:
    """Two boxes, and a control plane that uses both."""

    boxes: list[Box]
    api: ApiClient

    def where(self) -> dict[str, str]:
        """The gateway of each function, from the control plane's status."""
        return {each["function"]: each["gateway"] for each in self.api.status()["functions"]}

    def answer(self) -> str:
        return str(self.api.post(COMPLETION, **ASK)["choices"][0]["text"])


@pytest.fixture
def site(
    chat_partition: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    monkeypatch.setattr(failover, "PROBE_SECONDS", 0.05)
    monkeypatch.setattr(failover, "AWAY_SECONDS", 0.3)
    config = ServeConfig(
        port=0,
        kv_cache_mb=8,
        threads=1,
        open=True,
        database=str(tmp_path / "db"),
        invocation_deadline=getattr(request, "param", 60.0),
    )
    with ExitStack() as stack:
        boxes = []
        for name in "ab":
            (tmp_path / name).mkdir()
            arguments = ("gateway", chat_partition, "--port", 0)
            command = stack.enter_context(running_command(*arguments, temporary=tmp_path / name))
            boxes.append(Box(command, URL(command.wait_for(r"(http://[\w.:]+);"))))
        changes = asyncio.run(deploy(chat_partition, [box.url for box in boxes]))
        assert {change.gateway for change in changes} == {str(box.url) for box in boxes}
        access = [GatewayAccess(box.url) for box in boxes]
        url = stack.enter_context(in_thread(control_plane(chat_partition, config, access)))
        yield Site(boxes, ApiClient(url))


async def deploy(partition: Path, urls: list[URL]) -> list[Change]:
    async with AsyncExitStack() as stack:
        gateways = [await stack.enter_async_context(Gateway.connect(url, None)) for url in urls]
        return [change async for change in deploy_all(Manifest.load(partition), gateways)]


def test_requests_are_answered_when_a_gateway_is_lost(site: Site) -> None:
    lost, left = site.boxes
    wanted = site.answer()
    assert set(site.where().values()) == {str(lost.url), str(left.url)}
    with ThreadPoolExecutor(CALLERS) as threads:
        before = [threads.submit(site.answer) for _ in range(2 * CALLERS)]
        before[0].result()
        lost.kill()
        after = [threads.submit(site.answer) for _ in range(2 * CALLERS)]
        assert {answer.result() for answer in before + after} == {wanted}
    eventually(lambda: set(site.where().values()), {str(left.url)})
    gateways = {each["url"]: each["error"] for each in site.api.status()["gateways"]}
    assert gateways[str(left.url)] is None
    assert "no OpenFaaS gateway answers" in gateways[str(lost.url)]


@pytest.mark.parametrize("site", [1.0], indirect=True)
def test_without_room_requests_fail_clearly_and_the_server_stays(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(_: Gateway) -> int:
        return 1

    monkeypatch.setattr(Gateway, "max_functions", full)
    site.answer()
    site.boxes[0].kill()
    answer = site.api.answer("POST", COMPLETION, ASK)
    assert answer.status == 503
    assert answer.error["code"] == "function_unavailable"
    assert site.api.answer("GET", "/v1/models").status == 200
    eventually(lambda: site.api.engine()["running"], 0)
