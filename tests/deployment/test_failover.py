"""Functions move when their gateway stays unreachable; tests set the clock and the gateways' answers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest

from control_plane.deployment import failover
from control_plane.deployment.deploy import deploy_all
from control_plane.deployment.failover import AWAY_SECONDS, Failover
from control_plane.faas import client
from control_plane.faas.client import Gateway
from control_plane.faas.gateways import Gateways
from control_plane.http import serving
from tests.deployment.test_deploy import StubGateway
from tests.support.gateways.echo_gateway import asynchronous
from tests.support.models.tiny_partition import TinyPartition


@dataclass
class TwoGateways:
    """Two gateways that share the functions of a partition."""

    stubs: list[StubGateway]
    gateways: Gateways
    failover: Failover

    def held(self) -> list[set[str]]:
        return [set(paper.functions) for paper in self.stubs]


@asynccontextmanager
async def two_gateways(tiny: TinyPartition, provider: str = "faasd") -> AsyncIterator[TwoGateways]:
    stubs = [StubGateway(), StubGateway(provider)]
    async with AsyncExitStack() as stack:
        connected = []
        for paper in stubs:
            url = await stack.enter_async_context(serving(paper.app(), "127.0.0.1", 0))
            connected.append(await stack.enter_async_context(Gateway.connect(url, None)))
        async for _ in deploy_all(tiny.manifest, connected):
            pass
        gateways = Gateways(connected, frozenset(tiny.functions))
        await gateways.functions()
        yield TwoGateways(stubs, gateways, Failover(tiny.manifest, gateways, ""))


@pytest.fixture(autouse=True)
def _healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gateways answer unless a test says that they are away."""

    async def answers(_: Gateway) -> bool:
        return True

    monkeypatch.setattr(Gateway, "answers", answers)
    monkeypatch.setattr(client, "PAUSE_SECONDS", 0.0)


def away(monkeypatch: pytest.MonkeyPatch, *lost: Gateway) -> None:
    async def answers(gateway: Gateway) -> bool:
        return gateway not in lost

    monkeypatch.setattr(Gateway, "answers", answers)


@asynchronous
async def test_functions_move_when_their_gateway_stays_unreachable(
    tiny: TinyPartition,
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        async with two_gateways(tiny) as site:
            first, second = site.gateways.all
            before = site.held()
            away(monkeypatch, first)
            await site.failover.check(100.0)
            await site.failover.check(100.0 + AWAY_SECONDS - 1)
            assert site.held() == before
            await site.failover.check(100.0 + AWAY_SECONDS)
            assert site.stubs[1].functions.keys() == set(tiny.functions)
            assert {site.gateways.of(name) for name in tiny.functions} == {second}
            away(monkeypatch)
            await site.failover.check(120.0)
            # The functions that moved are removed from their old gateway.
            assert site.held() == [set(), set(tiny.functions)]
            assert await site.gateways.functions()
            assert {site.gateways.of(name) for name in tiny.functions} == {second}


@asynchronous
async def test_a_short_absence_moves_nothing(tiny: TinyPartition) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        async with two_gateways(tiny) as site:
            before = site.held()
            for now in (0.0, AWAY_SECONDS - 1, AWAY_SECONDS + 1, 2 * AWAY_SECONDS):
                away(monkeypatch, *([] if now == AWAY_SECONDS + 1 else site.gateways.all[:1]))
                await site.failover.check(now)
            assert site.held() == before


@asynchronous
async def test_missing_room_is_logged_once(tiny: TinyPartition, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        async with two_gateways(tiny, "faasd-ce") as site:
            site.stubs[1].functions |= {f"f{number}": {"image": "i"} for number in range(14)}
            away(monkeypatch, site.gateways.all[0])
            for now in (0.0, AWAY_SECONDS, AWAY_SECONDS + 1):
                await site.failover.check(now)
            (line,) = [record for record in caplog.records if record.name == failover.__name__]
            assert "2 functions cannot move" in line.getMessage()
            assert "no room" in line.getMessage()


@asynchronous
async def test_a_gateway_that_returns_empty_is_deployed_to_again(tiny: TinyPartition) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        async with two_gateways(tiny) as site:
            before = [dict(stub.functions) for stub in site.stubs]
            away(monkeypatch, site.gateways.all[0])
            await site.failover.check(0.0)
            lost = site.stubs[0].functions
            site.stubs[0].functions = {"other": {"image": "i"}}
            site.stubs[0].failures = dict.fromkeys(lost, client.ATTEMPTS)
            await site.failover.check(1.0)
            away(monkeypatch)
            await site.failover.check(2.0)
            assert not lost.keys() & site.stubs[0].functions.keys()
            site.stubs[0].failures.clear()
            await site.failover.check(3.0)
            assert site.stubs[0].functions == {"other": {"image": "i"}, **lost}
            assert site.stubs[1].functions == before[1]
            assert site.gateways.lost(site.gateways.all[0]) == []


@asynchronous
async def test_a_function_that_somebody_has_deployed_meanwhile_stays_as_it_is(tiny: TinyPartition) -> None:
    async with two_gateways(tiny) as site:
        (first, _), stub = site.gateways.all, site.stubs[0]
        lost = stub.functions
        stub.functions = {}
        site.gateways.failed(first)
        await site.gateways.functions()
        newer = {name: {"image": "newer"} for name in lost}
        stub.functions = dict(newer)
        await site.failover.check(0.0)
        assert stub.functions == newer
        assert site.gateways.lost(first) == []


@asynchronous
async def test_a_function_that_was_removed_while_its_gateway_answered_is_not_deployed(
    tiny: TinyPartition,
) -> None:
    async with two_gateways(tiny) as site:
        site.stubs[0].functions.clear()
        await site.gateways.functions()
        site.stubs[0].changes.clear()
        for now in range(3):
            await site.failover.check(float(now))
        assert site.stubs[0].changes == []


@asynchronous
async def test_nothing_is_removed_from_a_gateway_without_provider(tiny: TinyPartition) -> None:
    """faasd's gateway answers 404 to everything then, also to the removal of a function that is there."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        async with two_gateways(tiny) as site:
            away(monkeypatch, site.gateways.all[0])
            await site.failover.check(0.0)
            await site.failover.check(AWAY_SECONDS)
            away(monkeypatch)
            site.stubs[0].away = True
            await site.failover.check(AWAY_SECONDS + 1)
            assert site.stubs[0].functions
            site.stubs[0].away = False
            await site.failover.check(AWAY_SECONDS + 2)
            assert not site.stubs[0].functions


@asynchronous
async def test_the_task_ends_with_its_context(tiny: TinyPartition) -> None:
    async with two_gateways(tiny) as site:
        before = asyncio.all_tasks()
        async with site.failover.running():
            assert len(asyncio.all_tasks() - before) == 1
        assert asyncio.all_tasks() == before
