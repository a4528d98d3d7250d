"""The autoscaler with a gateway: its requests, their timing, and its reaction to refusals."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from yarl import URL

from control_plane.autoscaling import autoscaler as autoscaler_module
from control_plane.autoscaling import observer
from control_plane.autoscaling.autoscaler import Autoscaler
from control_plane.autoscaling.footprint import FUNCTION_OVERHEAD_BYTES, BlockSize, Footprint
from control_plane.faas import client
from control_plane.faas.client import Gateway
from control_plane.faas.gateways import Gateways
from control_plane.faas.invocation import ResidentLimits
from control_plane.faas.statistics import FunctionStatistics
from functions.contract.messages import InvocationResult, ResidencyReport
from tests.support.api.api_server import closed_port
from tests.support.gateways.echo_gateway import asynchronous
from tests.support.gateways.scaling_gateway import scaling_gateway
from tests.support.models.tiny_engine import until

pytestmark = pytest.mark.slow

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
    """Stands in for the engine and the rest of the control plane."""

    statistics: dict[str, FunctionStatistics] = field(default_factory=dict)
    limits: RecordedLimits = field(default_factory=RecordedLimits)
    busy: bool = False
    own_bytes: int = OWN
    trims: int = 0

    def autoscaler(
        self,
        gateway: Gateway,
        *names: str,
        idle: float = LONG,
        room: int | None = None,
        others: Sequence[Gateway] = (),
    ) -> Autoscaler:
        """An autoscaler of blocks of 20 experts; `room` is the budget's memory for experts, in experts."""
        blocks = {name: BlockSize(20, 2) for name in names}
        budget = None if room is None else OWN + len(names) * FUNCTION_OVERHEAD_BYTES + room * EXPERT
        return Autoscaler(
            Gateways([gateway, *others], frozenset(names)),
            self.statistics,
            Footprint(OWN, EXPERT, blocks),
            budget,
            idle,
            own_bytes=lambda: self.own_bytes,
            requests_running=lambda: self.busy,
            limits=self.limits,
            trim_memory=self.trim_memory,
            awake_invocations={name: f"awake {name}".encode() for name in names},
        )

    def trim_memory(self) -> None:
        self.trims += 1

    def answered(self, name: str, resident: int = 0, read: int = 0) -> None:
        """Record an answer of the function."""
        report = ResidencyReport(
            resident_experts=resident, resident_bytes=resident * EXPERT, read_bytes=read * EXPERT
        )
        result = InvocationResult(np.zeros((1, 4), np.float32), "one", "127.0.0.1:1", 0.1, 0, report)
        self.statistics.setdefault(name, FunctionStatistics()).record(0, 1, 1, result)


@asynchronous
async def test_idle_functions_go_to_zero_and_polling_ends() -> None:
    plane = ControlPlane()
    async with scaling_gateway("a", "b", "other") as (site, gateway):
        autoscaler = plane.autoscaler(gateway, "a", "b", idle=SHORT)
        async with autoscaler.running():
            await until(lambda: autoscaler.actions["zero"] == 2)
            assert site.replicas == {"a": 0, "b": 0, "other": 1}
            await until(lambda: plane.trims > 0)
            # Once more, to see that they sleep.
            seen = site.listings
            await until(lambda: site.listings > seen)
            await asyncio.sleep(0)
            listings = site.listings
            await asyncio.sleep(3 * SHORT)
            assert site.listings == listings


@asynchronous
async def test_a_request_wakes_all_functions_at_the_same_time() -> None:
    plane = ControlPlane()
    async with scaling_gateway("a", "b", "c") as (site, gateway):
        site.replicas = dict.fromkeys("abc", 0)
        async with (autoscaler := plane.autoscaler(gateway, "a", "b", "c")).running():
            await until(lambda: site.listings == 1)
            await asyncio.sleep(0.05)
            # The gateway answers no scale request before it has received all of them.
            site.released.clear()
            site.on_scale = lambda _: site.released.set() if len({a[1] for a in site.asked}) == 3 else None
            autoscaler.prompted()
            await until(lambda: autoscaler.actions["wake"] >= 3)
            assert site.replicas == dict.fromkeys("abc", 1)


@asynchronous
async def test_a_request_does_not_wake_functions_that_the_last_one_did_not_use() -> None:
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
async def test_functions_woken_for_a_long_request_stay_awake_until_they_are_called() -> None:
    """A request that waits for the first layers' weights has not reached the last layers yet."""
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
async def test_a_function_that_a_call_wakes_during_its_scale_to_zero_is_noticed() -> None:
    plane = ControlPlane()
    async with scaling_gateway("a", "b") as (site, gateway):
        site.released.clear()
        async with plane.autoscaler(gateway, "a", "b", idle=SHORT).running():
            await until(lambda: site.listings == 1)
            await asyncio.sleep(SHORT / 2)
            # So that b becomes idle later than a, whose scale request is then in progress.
            plane.answered("b")
            await until(lambda: ("scale", "a", "0") in site.asked)
            listings = site.listings
            await until(lambda: site.listings > listings)
            site.released.set()
            await until(lambda: not site.replicas["a"])
            site.replicas["a"] = 1
            site.calls["a"] += 1
            await until(lambda: site.asked.count(("scale", "a", "0")) == 2)


@asynchronous
async def test_stopping_while_a_request_arrives() -> None:
    plane = ControlPlane()
    async with (
        scaling_gateway("a") as (site, gateway),
        (autoscaler := plane.autoscaler(gateway, "a")).running(),
    ):
        await until(lambda: site.listings == 1)
        await asyncio.sleep(0.05)
        autoscaler.prompted()


@asynchronous
async def test_a_refusal_to_scale_to_zero_is_logged_once_and_weights_are_dropped() -> None:
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
                # Again after the next use, without another attempt to scale.
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
async def test_functions_that_a_scale_to_zero_does_not_stop_drop_their_weights() -> None:
    """faasd's gateway makes one replica of zero, and answers 200."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(observer, "ZERO_SECONDS", 0.5)
        monkeypatch.setattr(autoscaler_module, "INTERVAL_SECONDS", 0.1)
        plane = ControlPlane()
        async with scaling_gateway("a", "b") as (site, gateway):
            site.clamps = True
            plane.answered("a", resident=3)
            async with (autoscaler := plane.autoscaler(gateway, "a", "b", idle=SHORT)).running():
                await until(lambda: site.listings == 1)
                assert autoscaler.memory().experts == 3 * EXPERT
                await until(lambda: autoscaler.actions["release"] == 2)
                assert plane.statistics["a"].residency.totals.evicted_for_idleness == 3
                assert autoscaler.memory().overhead == 2 * FUNCTION_OVERHEAD_BYTES
                assert len(site.of("scale")) == 2
                # Again after the next use, without another attempt to scale.
                plane.answered("a", resident=3)
                autoscaler.prompted()
                await until(lambda: autoscaler.actions["release"] == 3)
                assert len(site.of("scale")) == 2


@asynchronous
async def test_functions_in_use_are_called_through_their_gateway() -> None:
    plane = ControlPlane(busy=True)
    async with scaling_gateway("a", "b", "c") as (site, gateway):
        site.failing = {"a"}
        async with plane.autoscaler(gateway, "a", "b", "c", idle=3 * SHORT).running():
            plane.answered("a")
            plane.answered("b")
            await until(lambda: len(site.of("invoke")) == 2)
            assert sorted(site.of("invoke")) == [("invoke", "a", "awake a"), ("invoke", "b", "awake b")]
            # Each again after its next use; a failure changes nothing.
            plane.answered("a")
            await until(lambda: len(site.of("invoke")) == 3)
            assert site.of("invoke")[2] == ("invoke", "a", "awake a")
            # These calls are no use themselves.
            plane.busy = False
            await until(lambda: not any(site.replicas.values()))
            assert len(site.of("invoke")) == 3


@asynchronous
async def test_a_gateway_that_hangs_does_not_stop_the_others() -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(client, "LIST_SECONDS", 0.2)
        monkeypatch.setattr(client, "RESIDENCY_SECONDS", 0.2)
        plane = ControlPlane(busy=True)
        async with (
            scaling_gateway("a") as (hung, first),
            scaling_gateway("b") as (site, second),
            (autoscaler := plane.autoscaler(first, "a", "b", room=30, others=[second], idle=3.0)).running(),
        ):
            await until(lambda: autoscaler.actions["limit"] == 2)
            hung.hangs = asyncio.Event()
            plane.answered("a", resident=15)
            plane.own_bytes += 10 * EXPERT
            autoscaler.prompted()
            await until(lambda: ("limit", "b", str(10 * EXPERT)) in site.asked)
            # The function at the hung gateway still has its memory.
            assert autoscaler.memory().experts == 15 * EXPERT
            for _ in range(2):
                site.asked.clear()
                plane.answered("b")
                await until(lambda: ("invoke", "b", "awake b") in site.asked)
            hung.hangs.set()


@asynchronous
async def test_the_memory_of_functions_that_answer_counts_without_a_list() -> None:
    plane = ControlPlane()
    async with scaling_gateway("a", "b") as (site, gateway):
        site.away = True
        async with (autoscaler := plane.autoscaler(gateway, "a", "b")).running():
            await until(lambda: site.listings == 1)
            assert autoscaler.memory().total == OWN
            plane.answered("a", resident=3)
            assert autoscaler.memory().experts == 3 * EXPERT
            assert autoscaler.memory().overhead == FUNCTION_OVERHEAD_BYTES


@asynchronous
async def test_limits_are_set_and_confirmed_from_the_start() -> None:
    plane = ControlPlane()
    async with scaling_gateway("a", "b") as (site, gateway):
        autoscaler = plane.autoscaler(gateway, "a", "b", room=30)
        assert plane.limits.history == [{"a": 2 * EXPERT, "b": 2 * EXPERT}]
        async with autoscaler.running():
            await until(lambda: len(site.of("limit")) == 2)
            await until(lambda: plane.limits.history[-1] == {"a": 15 * EXPERT, "b": 15 * EXPERT})
        assert sorted(site.asked) == [("limit", "a", str(15 * EXPERT)), ("limit", "b", str(15 * EXPERT))]


@asynchronous
async def test_no_function_grows_before_the_others_have_shrunk() -> None:
    plane = ControlPlane()
    async with (
        scaling_gateway("a", "b") as (site, gateway),
        (autoscaler := plane.autoscaler(gateway, "a", "b", room=30)).running(),
    ):
        await until(lambda: autoscaler.actions["limit"] == 2)
        # b fails to shrink while a reads a lot.
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
    limits = [sum(by_function.values()) for by_function in plane.limits.history]
    assert max(limits) <= 30 * EXPERT
    assert plane.limits.history[-1]["a"] > 15 * EXPERT


@asynchronous
async def test_functions_shrink_when_the_control_plane_grows() -> None:
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
async def test_the_autoscaler_survives_an_unreachable_gateway() -> None:
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
async def test_stopping_while_a_request_hangs() -> None:
    plane = ControlPlane()
    async with scaling_gateway("a") as (site, gateway):
        site.released.clear()
        async with plane.autoscaler(gateway, "a", idle=SHORT).running():
            await until(lambda: bool(site.of("scale")))
        site.released.set()
