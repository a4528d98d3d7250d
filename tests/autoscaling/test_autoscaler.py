"""The autoscaler against a gateway: what it asks of it, when, and what it makes of refusals."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from yarl import URL

from control_plane.autoscaling.autoscaler import Autoscaler
from control_plane.autoscaling.footprint import FUNCTION_OVERHEAD_BYTES, BlockSize, Footprint
from control_plane.faas.client import Gateway
from control_plane.faas.gateways import Gateways
from control_plane.faas.invocation import ResidentLimits
from control_plane.faas.statistics import FunctionStatistics
from functions.contract.wire import InvocationResult, ResidencyReport
from tests.support.api_server import closed_port
from tests.support.echo_gateway import asynchronous
from tests.support.scaling_gateway import scaling_gateway
from tests.support.tiny_engine import until

OWN = 100_000_000
EXPERT = 1_000_000
LONG = 900.0
SHORT = 0.2


@dataclass
class RecordedLimits(ResidentLimits):
    """Keeps every set of limits that the autoscaler has set."""

    history: list[Mapping[str, int]] = field(default_factory=list)

    def replace(self, by_function: Mapping[str, int]) -> None:
        super().replace(by_function)
        self.history.append(self.by_function)


@dataclass
class ControlPlane:
    """What the autoscaler is given in the place of an engine."""

    statistics: dict[str, FunctionStatistics] = field(default_factory=dict)
    limits: RecordedLimits = field(default_factory=RecordedLimits)
    busy: bool = False
    own_bytes: int = OWN
    given_back: int = 0

    def autoscaler(
        self, gateway: Gateway, *names: str, idle: float = LONG, room: int | None = None
    ) -> Autoscaler:
        """One with blocks of 20 experts each; `room` is that of the budget for experts, in experts."""
        blocks = {name: BlockSize(20, 2) for name in names}
        budget = None if room is None else OWN + len(names) * FUNCTION_OVERHEAD_BYTES + room * EXPERT
        return Autoscaler(
            Gateways([gateway], frozenset(names)),
            self.statistics,
            Footprint(OWN, EXPERT, blocks),
            budget,
            idle,
            own_bytes=lambda: self.own_bytes,
            busy=lambda: self.busy,
            limits=self.limits,
            give_back=self.give_back,
        )

    def give_back(self) -> None:
        self.given_back += 1

    def answered(self, name: str, resident: int = 0, read: int = 0) -> None:
        """The function has answered an invocation."""
        report = ResidencyReport(
            resident_experts=resident, resident_bytes=resident * EXPERT, read_bytes=read * EXPERT
        )
        result = InvocationResult(np.zeros((1, 4), np.float32), "one", "127.0.0.1:1", 0.1, 0, report)
        self.statistics.setdefault(name, FunctionStatistics()).record(0, 1, 1, result)


@asynchronous
async def test_functions_that_idle_go_to_zero_and_then_nobody_asks_any_more() -> None:
    plane = ControlPlane()
    async with scaling_gateway("a", "b", "other") as (site, gateway):
        autoscaler = plane.autoscaler(gateway, "a", "b", idle=SHORT)
        async with autoscaler.running():
            await until(lambda: autoscaler.actions["zero"] == 2)
            assert site.replicas == {"a": 0, "b": 0, "other": 1}
            await until(lambda: plane.given_back > 0)
            await asyncio.sleep(0)
            listings = site.listings
            await asyncio.sleep(3 * SHORT)
            assert site.listings == listings


@asynchronous
async def test_a_prompt_wakes_all_at_the_same_time() -> None:
    plane = ControlPlane()
    async with scaling_gateway("a", "b", "c") as (site, gateway):
        site.replicas = dict.fromkeys("abc", 0)
        async with (autoscaler := plane.autoscaler(gateway, "a", "b", "c")).running():
            await until(lambda: site.listings == 1)
            await asyncio.sleep(0.05)
            # No call is answered before all have come.
            site.released.clear()
            site.on_scale = lambda _: site.released.set() if len({a[1] for a in site.asked}) == 3 else None
            autoscaler.prompted()
            await until(lambda: autoscaler.actions["wake"] >= 3)
            assert site.replicas == dict.fromkeys("abc", 1)


@asynchronous
async def test_a_prompt_does_not_wake_what_the_last_one_did_without() -> None:
    plane = ControlPlane()
    async with scaling_gateway("a", "b") as (site, gateway):
        site.replicas = {"a": 0, "b": 0}
        async with (autoscaler := plane.autoscaler(gateway, "a", "b", idle=SHORT)).running():
            autoscaler.prompted()
            await until(lambda: all(site.replicas.values()))
            plane.answered("a")
            await until(lambda: not any(site.replicas.values()))
            await until(lambda: autoscaler.actions["zero"] == 2)
            site.asked.clear()
            autoscaler.prompted()
            await until(lambda: bool(site.replicas["a"]))
            await until(lambda: not site.replicas["a"])
            assert ("scale", "b", "1") not in site.asked


@asynchronous
async def test_what_a_request_that_takes_long_has_woken_stays_until_it_is_called() -> None:
    """A prompt that waits for the first layers' weights has not come to the last ones' yet."""
    plane = ControlPlane(busy=True)
    async with scaling_gateway("first", "last") as (site, gateway):
        site.replicas = {"first": 0, "last": 0}
        async with (autoscaler := plane.autoscaler(gateway, "first", "last", idle=SHORT)).running():
            autoscaler.prompted()
            await until(lambda: all(site.replicas.values()))
            listings = site.listings
            plane.answered("first")
            await until(lambda: ("scale", "first", "0") in site.asked)
            await until(lambda: site.listings > listings + 1)
            assert site.replicas["last"]
            plane.busy = False
            await until(lambda: not site.replicas["last"])


@asynchronous
async def test_what_a_call_wakes_while_it_is_put_to_sleep_is_found_out() -> None:
    plane = ControlPlane()
    async with scaling_gateway("a", "b") as (site, gateway):
        site.released.clear()
        async with plane.autoscaler(gateway, "a", "b", idle=SHORT).running():
            await until(lambda: site.listings == 1)
            await asyncio.sleep(SHORT / 2)
            # For which b sleeps later: a is on its way then.
            plane.answered("b")
            await until(lambda: ("scale", "a", "0") in site.asked)
            listings = site.listings
            await until(lambda: site.listings > listings)
            site.released.set()
            await until(lambda: not site.replicas["a"])
            site.replicas["a"] = 1
            await until(lambda: site.asked.count(("scale", "a", "0")) == 2)


@asynchronous
async def test_it_ends_in_the_moment_in_which_a_prompt_arrives() -> None:
    plane = ControlPlane()
    async with (
        scaling_gateway("a") as (site, gateway),
        (autoscaler := plane.autoscaler(gateway, "a")).running(),
    ):
        await until(lambda: site.listings == 1)
        await asyncio.sleep(0.05)
        autoscaler.prompted()


@asynchronous
async def test_a_gateway_that_refuses_zero_is_told_of_once_and_weights_are_dropped() -> None:
    plane = ControlPlane()
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("control_plane.autoscaling").addHandler(handler)
    try:
        async with scaling_gateway("a", "b", refuses_zero=True) as (site, gateway):
            plane.answered("a", resident=3)
            plane.answered("b", resident=3)
            async with (autoscaler := plane.autoscaler(gateway, "a", "b", idle=SHORT)).running():
                await until(lambda: autoscaler.actions["release"] == 2)
                assert site.replicas == {"a": 1, "b": 1}
                assert plane.statistics["a"].residency.totals.evicted_for_idleness == 3
                assert autoscaler.memory().experts == 0
                # Once more after the next use, and without another try to scale.
                plane.answered("a", resident=3)
                autoscaler.prompted()
                await until(lambda: autoscaler.actions["release"] == 3)
                assert len(site.of("scale")) == 2
                assert site.of("release")[2] == ("release", "a")
    finally:
        logging.getLogger("control_plane.autoscaling").removeHandler(handler)
    assert len(messages) == 1
    assert "does not scale to zero" in messages[0]


@asynchronous
async def test_shares_are_told_and_confirmed_from_the_start() -> None:
    plane = ControlPlane()
    async with scaling_gateway("a", "b") as (site, gateway):
        autoscaler = plane.autoscaler(gateway, "a", "b", room=30)
        assert plane.limits.history == [{"a": 2 * EXPERT, "b": 2 * EXPERT}]
        async with autoscaler.running():
            await until(lambda: len(site.of("limit")) == 2)
            await until(lambda: plane.limits.history[-1] == {"a": 15 * EXPERT, "b": 15 * EXPERT})
        assert sorted(site.asked) == [("limit", "a", str(15 * EXPERT)), ("limit", "b", str(15 * EXPERT))]


@asynchronous
async def test_nobody_grows_before_the_others_have_shrunk() -> None:
    plane = ControlPlane()
    async with (
        scaling_gateway("a", "b") as (site, gateway),
        (autoscaler := plane.autoscaler(gateway, "a", "b", room=30)).running(),
    ):
        await until(lambda: autoscaler.actions["limit"] == 2)
        # b does not do as it is told; a reads a lot.
        site.failing = {"b"}
        plane.busy = True
        plane.answered("b", resident=15)
        for read in range(100, 100_000, 100):
            plane.answered("a", resident=15, read=read)
            autoscaler.prompted()
            await asyncio.sleep(0.01)
            if len(site.of("limit")) > 2:
                break
        assert plane.limits.history[-1] == {"a": 15 * EXPERT, "b": 14 * EXPERT}
        site.failing = set()
        for read in range(100_000, 200_000, 100):
            plane.answered("a", resident=15, read=read)
            autoscaler.prompted()
            await asyncio.sleep(0.01)
            if plane.limits.history[-1]["a"] > 15 * EXPERT:
                break
    limits = [sum(told.values()) for told in plane.limits.history]
    assert max(limits) <= 30 * EXPERT
    assert plane.limits.history[-1]["a"] > 15 * EXPERT


@asynchronous
async def test_a_control_plane_that_grows_has_functions_shrink() -> None:
    plane = ControlPlane()
    async with (
        scaling_gateway("a", "b") as (site, gateway),
        (autoscaler := plane.autoscaler(gateway, "a", "b", room=30)).running(),
    ):
        await until(lambda: autoscaler.actions["limit"] == 2)
        plane.own_bytes += 10 * EXPERT
        autoscaler.prompted()
        await until(lambda: ("limit", "a", str(10 * EXPERT)) in site.asked)
        await until(lambda: ("limit", "b", str(10 * EXPERT)) in site.asked)
        assert autoscaler.memory().control_plane == OWN + 10 * EXPERT


@asynchronous
async def test_a_gateway_that_is_away_costs_nobody_anything() -> None:
    plane = ControlPlane()
    with closed_port() as port:
        async with (
            Gateway.connect(URL(f"http://127.0.0.1:{port}"), None) as gateway,
            (autoscaler := plane.autoscaler(gateway, "a", room=30)).running(),
        ):
            for _ in range(3):
                autoscaler.prompted()
                await asyncio.sleep(0.05)
            assert autoscaler.memory().experts == 0
    assert not autoscaler.actions


@asynchronous
async def test_it_ends_while_a_call_hangs() -> None:
    plane = ControlPlane()
    async with scaling_gateway("a") as (site, gateway):
        site.released.clear()
        async with plane.autoscaler(gateway, "a", idle=SHORT).running():
            await until(lambda: bool(site.of("scale")))
        site.released.set()
