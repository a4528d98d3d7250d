"""The policy's decisions for functions in use, idle or asleep: single cases, and properties of all cases."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.autoscaling.footprint import BlockSize
from control_plane.autoscaling.policy import (
    Action,
    FunctionState,
    Limit,
    Observed,
    Release,
    ScalingSettings,
    Sleep,
    Wake,
    decide,
)
from control_plane.autoscaling.shares import Use

EXPERT = 1_000_000
OVERHEAD = 20_000_000
OWN = 100_000_000
BLOCKS = {name: BlockSize(20, 2) for name in ("a", "b", "c")}
UNLIMITED = ScalingSettings(budget=None, idle_timeout=60.0, expert_nbytes=EXPERT, blocks=BLOCKS)
AWAKE = FunctionState(1, True, 5.0, Use(10, 10, 0.0), OVERHEAD)
IDLE = replace(AWAKE, idle_seconds=60.0)
ASLEEP = FunctionState(0, False, 900.0, Use(2, 0, 0.0), OVERHEAD)
STARTING = replace(AWAKE, available=False)


def budget(pool: int) -> ScalingSettings:
    """Settings with a budget that has memory for `pool` experts in all."""
    return replace(UNLIMITED, budget=OWN + 3 * OVERHEAD + pool * EXPERT)


def decided(
    settings: ScalingSettings = UNLIMITED, prompted: bool = False, **functions: FunctionState
) -> list[Action]:
    return decide(Observed(functions, OWN, prompted), settings)


@pytest.mark.parametrize(
    ("state", "prompted", "actions"),
    [
        (AWAKE, False, []),
        (AWAKE, True, []),
        (IDLE, False, [Sleep("a")]),
        (replace(IDLE, idle_seconds=59.9), False, []),
        # A request has just arrived that may need it.
        (IDLE, True, []),
        (ASLEEP, False, []),
        (ASLEEP, True, [Wake("a")]),
        (replace(ASLEEP, woken_in_vain=True), True, []),
        (STARTING, True, []),
        (replace(STARTING, idle_seconds=60.0), False, [Sleep("a")]),
        (replace(IDLE, refuses_zero=True), False, [Release("a")]),
        (replace(IDLE, refuses_zero=True, released=True), False, []),
        (replace(IDLE, refuses_zero=True, available=False), False, []),
        (replace(AWAKE, refuses_zero=True), False, []),
    ],
)
def test_one_function(state: FunctionState, prompted: bool, actions: list[Action]) -> None:
    assert decided(a=state, prompted=prompted) == actions


def test_a_request_wakes_all_sleeping_functions_at_once() -> None:
    assert decided(a=ASLEEP, b=AWAKE, c=ASLEEP, prompted=True) == [Wake("a"), Wake("c")]


def test_without_a_budget_there_are_no_limits() -> None:
    assert decided(a=replace(AWAKE, use=Use(0, 0, 0.0)), b=AWAKE) == []


def test_first_limits_count_as_shrinking_so_that_they_are_confirmed() -> None:
    new = replace(AWAKE, use=Use(0, 5, 0.0))
    assert decided(budget(30), a=new, b=new, c=new) == [Limit(name, 10, grows=False) for name in "abc"]


def test_unchanged_shares_are_not_sent_again() -> None:
    assert decided(budget(30), a=AWAKE, b=AWAKE, c=AWAKE) == []


def test_one_shrinks_before_another_grows() -> None:
    busy = replace(AWAKE, use=Use(10, 10, 50.0))
    actions = decided(budget(30), a=busy, b=AWAKE, c=replace(AWAKE, use=Use(10, 4, 0.0)))
    assert actions == [Limit("c", 9, grows=False), Limit("a", 11, grows=True)]


def test_a_few_reads_do_not_raise_a_share() -> None:
    assert decided(budget(30), a=replace(AWAKE, use=Use(10, 10, 0.4)), b=AWAKE, c=AWAKE) == []


def test_a_sleeping_function_keeps_only_the_least_share() -> None:
    actions = decided(budget(30), a=IDLE, b=AWAKE, c=AWAKE)
    assert actions == [
        Sleep("a"),
        Limit("a", 2, grows=False),
        Limit("b", 14, grows=True),
        Limit("c", 14, grows=True),
    ]


def test_waking_functions_get_equal_shares() -> None:
    actions = decided(budget(30), a=ASLEEP, b=ASLEEP, c=ASLEEP, prompted=True)
    assert actions == [*map(Wake, "abc"), *(Limit(name, 10, grows=True) for name in "abc")]


def test_a_growing_control_plane_takes_memory_from_the_functions() -> None:
    functions = {"a": AWAKE, "b": AWAKE, "c": AWAKE}
    actions = decide(Observed(functions, OWN + 6 * EXPERT, False), budget(30))
    assert actions == [Limit(name, 8, grows=False) for name in "abc"]
    actions = decide(Observed(functions, OWN + 300 * EXPERT, False), budget(30))
    assert actions == [Limit(name, 2, grows=False) for name in "abc"]


@st.composite
def observations(draw: st.DrawFn) -> tuple[Observed, ScalingSettings]:
    """Functions in any state, and a sufficient budget."""
    blocks, functions = {}, {}
    for name in "abcd"[: draw(st.integers(1, 4))]:
        experts = draw(st.integers(1, 40))
        blocks[name] = BlockSize(experts, min(draw(st.integers(1, 3)), experts))
        replicas = draw(st.integers(0, 1))
        functions[name] = FunctionState(
            replicas=replicas,
            available=bool(replicas) and draw(st.booleans()),
            idle_seconds=draw(st.floats(0, 200)),
            use=Use(draw(st.integers(0, 40)), draw(st.integers(0, 40)), draw(st.floats(0, 100))),
            overhead_bytes=draw(st.integers(0, 50_000_000)),
            refuses_zero=draw(st.booleans()),
            released=draw(st.booleans()),
            woken_in_vain=draw(st.booleans()),
        )
    least = OWN + sum(state.overhead_bytes for state in functions.values())
    least += sum(block.least for block in blocks.values()) * EXPERT
    total = least + draw(st.integers(0, 100 * EXPERT))
    return Observed(functions, OWN, draw(st.booleans())), ScalingSettings(total, 60.0, EXPERT, blocks)


@given(observations())
def test_the_budget_is_never_exceeded(observation: tuple[Observed, ScalingSettings]) -> None:
    observed, settings = observation
    actions = decide(observed, settings)
    limits = {action.function: action.experts for action in actions if isinstance(action, Limit)}
    shares = {name: limits.get(name, state.use.share) for name, state in observed.functions.items()}
    overhead = sum(state.overhead_bytes for state in observed.functions.values())
    assert settings.budget is not None
    assert OWN + overhead + sum(shares.values()) * EXPERT <= settings.budget
    for name, share in shares.items():
        assert settings.blocks[name].least <= share <= settings.blocks[name].experts
    # Functions that shrink come before those that grow.
    grows = [action.grows for action in actions if isinstance(action, Limit)]
    assert grows == sorted(grows)
    # No function gets two contradictory actions.
    changes = [action.function for action in actions if not isinstance(action, Limit)]
    assert len(changes) == len(set(changes))
