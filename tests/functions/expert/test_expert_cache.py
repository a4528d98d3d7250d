"""What is read next and what is dropped, decided without files or threads."""

import random
from collections.abc import Sequence
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.expert.expert_cache import READ_AHEAD_SHARE, ExpertCache

LAYERS, EXPERTS = 3, 4
LAYER_OF = np.repeat(np.arange(LAYERS), EXPERTS)


def call(cache: ExpertCache, positions: Sequence[int]) -> int:
    """One row that calls all of them; returns how many were cold."""
    return cache.call(positions, np.ones(len(positions), np.int64), rows=1)


def read_next(cache: ExpertCache) -> int | None:
    """Read what is to be read now, at once; returns its position."""
    load = cache.next_load()
    if load is None:
        return None
    cache.loaded(load)
    return load.position


def run(cache: ExpertCache, positions: Sequence[int]) -> list[list[int]]:
    """A whole call, with a reader that is as fast as it may; returns its waves."""
    call(cache, positions)
    waves = []
    while cache.pending:
        wave = cache.next_wave()
        read = list(iter(lambda: read_next(cache), None))
        assert wave or read, "the call is stuck"
        waves += [wave] if wave else []
    cache.finish()
    cache.drop_surplus()
    return waves


def test_what_is_there_is_one_wave() -> None:
    cache = ExpertCache(LAYER_OF, capacity=12)
    assert call(cache, [0, 2]) == 2
    assert not cache.has_wave
    assert [read_next(cache), read_next(cache), read_next(cache)] == [0, 2, None]
    assert cache.next_wave() == [0, 2]
    cache.finish()
    assert call(cache, [0, 2]) == 0
    assert cache.next_wave() == [0, 2]
    assert not cache.pending


def test_a_call_goes_on_with_what_is_there_and_waits_in_order() -> None:
    cache = ExpertCache(LAYER_OF, capacity=12)
    run(cache, [1])
    assert call(cache, [0, 1, 2]) == 2
    assert cache.next_wave() == []
    assert read_next(cache) == 0
    assert cache.next_wave() == [0, 1]
    assert read_next(cache) == 2
    assert cache.next_wave() == [2]


@pytest.mark.parametrize("capacity", range(5))
def test_a_call_of_more_than_there_is_room_for_has_all_of_them_in_order(capacity: int) -> None:
    cache = ExpertCache(LAYER_OF, capacity)
    assert list(chain(*run(cache, [4, 5, 6, 7]))) == [4, 5, 6, 7]
    assert len(cache.resident) == capacity


def test_each_expert_of_a_long_call_is_read_once() -> None:
    cache = ExpertCache(np.zeros(60, np.int64), capacity=10)
    reads = 0
    call(cache, range(60))
    while cache.pending:
        if read_next(cache) is not None:
            reads += 1
        else:
            cache.next_wave()
    assert reads == 60


def test_what_the_call_has_or_needs_is_not_dropped_while_there_is_another() -> None:
    cache = ExpertCache(LAYER_OF, capacity=3)
    run(cache, [0, 1, 2])
    call(cache, [4, 5])
    assert [read_next(cache), read_next(cache)] == [4, 5]
    assert cache.resident >= {4, 5}
    assert cache.next_wave() == [4, 5]
    assert cache.drop_idle() == sorted(cache.resident - {4, 5}) or cache.resident == {4, 5}
    assert cache.resident == {4, 5}


def test_what_is_called_comes_before_what_is_expected() -> None:
    cache = ExpertCache(LAYER_OF, capacity=12)
    cache.expect([4, 5])
    ahead = cache.next_load()
    assert ahead is not None
    assert (ahead.position, ahead.ahead) == (4, True)
    call(cache, [0])
    demanded = cache.next_load()
    assert demanded is not None
    assert (demanded.position, demanded.ahead) == (0, False)
    cache.loaded(demanded)
    assert cache.next_load() == ahead, "what was begun is finished"
    cache.loaded(ahead)
    assert read_next(cache) == 5


def test_what_was_begun_ahead_is_called_now() -> None:
    cache = ExpertCache(LAYER_OF, capacity=12)
    cache.expect([4])
    assert cache.next_load() is not None
    assert call(cache, [4]) == 1
    load = cache.next_load()
    assert load is not None
    assert (load.position, load.ahead) == (4, False)
    assert (cache.prefetched, cache.prefetch_hits) == (1, 1)


def test_hits_and_waste_of_what_was_read_ahead_are_counted() -> None:
    cache = ExpertCache(LAYER_OF, capacity=12)
    cache.expect([4, 5, 6])
    assert [read_next(cache) for _ in range(3)] == [4, 5, 6]
    assert call(cache, [4, 7]) == 1
    cache.finish()
    assert (cache.prefetched, cache.prefetch_hits, cache.prefetch_wasted) == (3, 1, 0)
    cache.drop_idle()
    assert (cache.prefetched, cache.prefetch_hits, cache.prefetch_wasted) == (3, 1, 2)


def test_little_is_read_ahead_and_not_in_the_place_of_what_is_expected() -> None:
    cache = ExpertCache(LAYER_OF, capacity=8)
    run(cache, [0, 1, 2, 3])
    run(cache, [4, 5, 6, 7])
    cache.expect([8, 4, 5, 9, 10, 6, 11, 7])
    read = [read_next(cache) for _ in range(3)]
    assert read == [8, 9, None]
    assert len(read) - 1 == 8 // READ_AHEAD_SHARE
    assert cache.resident > {4, 5, 6, 7, 8, 9}


def test_expectations_of_a_layer_end_with_its_call() -> None:
    cache = ExpertCache(LAYER_OF, capacity=12)
    cache.expect([4, 5])
    run(cache, [6])
    assert cache.resident == {4, 5, 6} or cache.resident == {6}
    assert cache.next_load() is None


def test_a_lower_limit_drops_what_is_over() -> None:
    cache = ExpertCache(LAYER_OF, capacity=12)
    run(cache, [0, 1, 2, 3])
    cache.capacity = 1
    assert len(cache.drop_surplus()) == 3
    assert len(cache.resident) == 1
    assert cache.evicted == {"limit": 3}


def test_a_lower_limit_in_mid_call_leaves_the_call_what_it_works_with() -> None:
    cache = ExpertCache(LAYER_OF, capacity=12)
    run(cache, [0, 1, 2, 3])
    call(cache, [0, 1])
    assert cache.next_wave() == [0, 1]
    cache.capacity = 0
    cache.drop_surplus()
    assert cache.resident == {0, 1}
    cache.finish()
    cache.drop_surplus()
    assert not cache.resident


def test_a_read_that_failed_can_be_tried_again() -> None:
    cache = ExpertCache(LAYER_OF, capacity=12)
    call(cache, [0])
    load = cache.next_load()
    assert load is not None
    assert cache.failed(load)
    assert not cache.pending
    cache.finish()
    assert cache.next_load() is None
    assert run(cache, [0]) == [[0]]


CALLS = st.lists(
    st.tuples(
        st.integers(0, LAYERS - 1),
        st.sets(st.integers(0, EXPERTS - 1), min_size=1),
        st.lists(st.integers(0, LAYERS * EXPERTS - 1), unique=True, max_size=6),
        st.none() | st.integers(0, 12),
    ),
    max_size=20,
)


@given(CALLS, st.integers(0, 12), st.randoms(use_true_random=False))
def test_any_order_of_events_keeps_its_promises(
    calls: list[tuple[int, set[int], list[int], int | None]], capacity: int, dice: random.Random
) -> None:
    """Calls end with all their experts in order, and no more is held than there is room for."""
    cache = ExpertCache(LAYER_OF, capacity)
    for layer, experts, expected, limit in calls:
        wanted = [layer * EXPERTS + expert for expert in sorted(experts)]
        cache.expect(expected)
        call(cache, wanted)
        if limit is not None:
            cache.capacity = capacity = limit
            cache.drop_surplus()
        got: list[int] = []
        for _ in range(1000):
            if not cache.pending:
                break
            if dice.random() < 0.5:
                got += cache.next_wave()
            elif (load := cache.next_load()) and dice.random() < 0.5:
                # The piece that has been read was the last one.
                cache.loaded(load)
                cache.drop_surplus()
        assert got == wanted
        cache.finish()
        cache.drop_surplus()
        while read_next(cache) is not None:
            cache.drop_surplus()
        assert len(cache.resident) <= capacity
