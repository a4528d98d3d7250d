"""Sequences in the background: they run while there are no others, and are in nobody's way."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.engine.scheduling.scheduler import Scheduler
from control_plane.engine.state.sequence import SamplingParams, Sequence
from tests.support.scheduling import PAGE, advance, assert_empty, make_scheduler, make_sequence


def background(prompt: int, output: int = 1, tenant: str = "tenant") -> Sequence:
    return Sequence("", tenant, [0] * prompt, SamplingParams(output), background=True)


@pytest.mark.parametrize("fair", [True, False])
def test_they_pause_while_others_run_and_keep_their_memory(fair: bool) -> None:
    scheduler = make_scheduler(fair=fair)
    night = [background(4, 4), background(4, 4)]
    for sequence in night:
        scheduler.add(sequence)
    assert {chunk.sequence for chunk in advance(scheduler)} == set(night)
    # The same tenant's own request goes first, too.
    day = make_sequence(3, 3)
    scheduler.add(day)
    late = background(2)
    scheduler.add(late)
    for _ in range(3):
        assert [chunk.sequence for chunk in advance(scheduler)] == [day]
        assert all(scheduler.kv_cache.pages.holds(sequence) for sequence in night)
    assert scheduler.num_preemptions == 0
    served = {chunk.sequence for _ in range(5) for chunk in advance(scheduler)}
    assert served == {*night, late}
    assert_empty(scheduler)


@pytest.mark.parametrize("num_lanes", [2, 16])
def test_they_are_the_first_to_lose_their_memory(num_lanes: int) -> None:
    scheduler = make_scheduler(max_batch_tokens=64, max_sequences=2, num_pages=4, num_lanes=num_lanes)
    night = [background(PAGE, 30), background(2 * PAGE, 3)]
    for sequence in night:
        scheduler.add(sequence)
    advance(scheduler)
    others = [make_sequence(PAGE, 2, "acme"), make_sequence(PAGE, 2, "bob")]
    for sequence in others:
        scheduler.add(sequence)
    assert {chunk.sequence for chunk in advance(scheduler)} == set(others)
    assert scheduler.num_preemptions > 0
    while scheduler.num_running + scheduler.num_waiting:
        assert advance(scheduler)
    assert_empty(scheduler)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from("abc"), st.integers(1, 70), st.integers(1, 20)), max_size=25
    ),
    st.integers(5, 12),
    st.integers(1, 3),
    st.data(),
)
def test_others_are_served_as_if_there_was_no_background(
    arrivals: list[tuple[bool, str, int, int]], num_pages: int, max_sequences: int, data: st.DataObject
) -> None:
    """Step by step the same chunks, whenever sequences come, and all end in any case."""
    shapes: Any = {"max_batch_tokens": 40, "max_sequences": max_sequences, "num_pages": num_pages}
    alone, shared = make_scheduler(**shapes), make_scheduler(**shapes)
    names: dict[Sequence, int] = {}
    for number, (is_background, tenant, prompt, output) in enumerate(arrivals):
        if prompt + output > num_pages * PAGE:
            continue
        if is_background:
            shared.add(background(prompt, output, tenant))
        else:
            pair = [make_sequence(prompt, output, tenant) for _ in range(2)]
            names |= dict.fromkeys(pair, number)
            alone.add(pair[0])
            shared.add(pair[1])
        for _ in range(data.draw(st.integers(0, 4))):
            step(alone, shared, names)
    for _ in range(10_000):
        if not alone.num_running + alone.num_waiting + shared.num_running + shared.num_waiting:
            break
        step(alone, shared, names)
    for scheduler in (alone, shared):
        assert_empty(scheduler)


def step(alone: Scheduler, shared: Scheduler, names: dict[Sequence, int]) -> None:
    wanted = {(names[chunk.sequence], chunk.start, chunk.end) for chunk in advance(alone)}
    chunks = advance(shared)
    if any(chunk.sequence not in names for chunk in chunks):
        assert not wanted
    else:
        assert {(names[chunk.sequence], chunk.start, chunk.end) for chunk in chunks} == wanted
