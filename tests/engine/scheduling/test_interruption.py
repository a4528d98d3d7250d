"""A step is abandoned for a tenant that has nothing in it, within the credit."""

import asyncio
from dataclasses import dataclass

import pytest

from control_plane.engine.scheduling.interruption import (
    MAX_CREDIT_SECONDS,
    WASTED_SHARE,
    Interrupted,
    Interruption,
)
from control_plane.engine.state.sequence import SamplingParams, Sequence
from tests.support.models.tiny_engine import Reference, idle, random_prompt, tokens_of, until
from tests.support.running import Served


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def after_a_step(seconds: float) -> tuple[Interruption, Clock]:
    clock = Clock()
    interruption = Interruption(clock)
    interruption.begin({"running"})
    clock.now += seconds
    interruption.end()
    return interruption, clock


def test_a_newcomer_interrupts() -> None:
    interruption, _ = after_a_step(1.0)
    interruption.begin({"running"})
    interruption.request("newcomer")
    with pytest.raises(Interrupted):
        interruption.check()


def test_a_tenant_of_the_step_does_not_interrupt() -> None:
    interruption, _ = after_a_step(1.0)
    interruption.begin({"running", "newcomer"})
    interruption.request("newcomer")
    interruption.check()


def test_a_newcomer_while_the_step_was_planned_interrupts_it() -> None:
    interruption, _ = after_a_step(1.0)
    interruption.request("newcomer")
    interruption.begin({"running"})
    with pytest.raises(Interrupted):
        interruption.check()


def test_an_acknowledged_tenant_does_not_interrupt() -> None:
    interruption, _ = after_a_step(1.0)
    interruption.request("newcomer")
    interruption.acknowledge("newcomer")
    interruption.begin({"running"})
    interruption.check()


def test_a_step_without_tenants_is_not_interrupted() -> None:
    interruption, _ = after_a_step(1.0)
    interruption.begin(set())
    interruption.request("newcomer")
    interruption.check()


def test_no_more_is_wasted_than_its_share() -> None:
    interruption, clock = after_a_step(1.0)
    wasted = 0.0
    for _ in range(10):
        interruption.begin({"running"})
        clock.now += 0.03
        interruption.request("newcomer")
        try:
            interruption.check()
        except Interrupted:
            wasted += 0.03
    assert 0 < wasted <= WASTED_SHARE


def test_credit_has_a_bound() -> None:
    interruption, _ = after_a_step(1e6)
    assert interruption.credit == MAX_CREDIT_SECONDS


def test_interrupted_steps_are_computed_again_correctly(serving: Served, reference: Reference) -> None:
    """Newcomers keep arriving, and credit is unlimited: each token still equals transformers'."""
    long = Sequence("test", "long", random_prompt(12), SamplingParams(40))

    async def run() -> tuple[list[int], list[list[int]]]:
        serving.runner.interruption.credit = 1e9
        first = asyncio.create_task(tokens_of(serving.engine.submit([long])))
        others: list[list[int]] = []
        while not first.done():
            newcomer = Sequence("test", f"newcomer-{len(others)}", random_prompt(5), SamplingParams(2))
            others.append(await tokens_of(serving.engine.submit([newcomer])))
        return await first, others

    tokens, others = asyncio.run(run())
    assert tokens == reference.answer(random_prompt(12), 40)
    assert len(others) > 1
    assert all(other == reference.answer(random_prompt(5), 2) for other in others)
    asyncio.run(until(lambda: idle(serving.engine)))
    serving.runner.interruption.credit = 0.0
