"""Decisions about the experts to read and to drop, without files or threads."""

import random
from collections.abc import Sequence
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.expert.expert_cache import PREFETCH_SHARE, ExpertCache

LAYERS, EXPERTS = 3, 4
LAYER_OF = np.repeat(np.arange(LAYERS), EXPERTS)


def call(cache: ExpertCache, positions: Sequence[int]) -> int:
    """Begin a call of one row for these experts; returns how many are cold."""
    return cache.call(positions, np.ones(len(positions), np.int64), rows=1)


def read_next(cache: ExpertCache) -> int | None:
    """Complete the next read; returns its position."""
    read = cache.next_read()
    if read is None:
        return None
    cache.complete(read)
    return read.position


def run(cache: ExpertCache, positions: Sequence[int]) -> list[list[int]]:
    """A whole call, with a reader that is as fast as the cache lets it; returns the waves."""
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


def test_experts_in_memory_are_one_wave() -> None:
    cache = ExpertCache(LAYER_OF, capacity=12)
    assert call(cache, [0, 2]) == 2
    assert not cache.has_wave
    assert [read_next(cache), read_next(cache), read_next(cache)] == [0, 2, None]
    assert cache.next_wave() == [0, 2]
    cache.finish()
    assert call(cache, [0, 2]) == 0
    assert cache.next_wave() == [0, 2]
    assert not cache.pending


def test_a_call_uses_experts_in_memory_and_waits_for_others_in_order() -> None:
    cache = ExpertCache(LAYER_OF, capacity=12)
    run(cache, [1])
    assert call(cache, [0, 1, 2]) == 2
    assert cache.next_wave() == []
    assert read_next(cache) == 0
    assert cache.next_wave() == [0, 1]
    assert read_next(cache) == 2
    assert cache.next_wave() == [2]


@pytest.mark.parametrize("capacity", range(5))
def test_a_call_that_exceeds_the_capacity_gets_all_its_experts_in_order(capacity: int) -> None:
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


def test_idle_experts_are_dropped_before_those_of_the_call() -> None:
    cache = ExpertCache(LAYER_OF, capacity=3)
    run(cache, [0, 1, 2])
    call(cache, [4, 5])
    assert [read_next(cache), read_next(cache)] == [4, 5]
    assert cache.resident >= {4, 5}
    assert cache.next_wave() == [4, 5]
    assert cache.drop_idle() == sorted(cache.resident - {4, 5}) or cache.resident == {4, 5}
    assert cache.resident == {4, 5}


def test_called_experts_are_read_before_predicted_ones() -> None:
    cache = ExpertCache(LAYER_OF, capacity=12)
    cache.prefetch([4, 5])
    prefetch = cache.next_read()
    assert prefetch is not None
    assert (prefetch.position, prefetch.is_prefetch) == (4, True)
    call(cache, [0])
    demanded = cache.next_read()
    assert demanded is not None
    assert (demanded.position, demanded.is_prefetch) == (0, False)
    cache.complete(demanded)
    assert cache.next_read() == prefetch, "the interrupted prefetch goes on"
    cache.complete(prefetch)
    assert read_next(cache) == 5


def test_a_prefetch_in_progress_becomes_the_calls_read() -> None:
    cache = ExpertCache(LAYER_OF, capacity=12)
    cache.prefetch([4])
    assert cache.next_read() is not None
    assert call(cache, [4]) == 1
    read = cache.next_read()
    assert read is not None
    assert (read.position, read.is_prefetch) == (4, False)
    assert (cache.prefetched, cache.prefetch_hits) == (1, 1)


def test_hits_and_waste_of_prefetches_are_counted() -> None:
    cache = ExpertCache(LAYER_OF, capacity=12)
    cache.prefetch([4, 5, 6])
    assert [read_next(cache) for _ in range(3)] == [4, 5, 6]
    assert call(cache, [4, 7]) == 1
    cache.finish()
    assert (cache.prefetched, cache.prefetch_hits, cache.prefetch_wasted) == (3, 1, 0)
    cache.drop_idle()
    assert (cache.prefetched, cache.prefetch_hits, cache.prefetch_wasted) == (3, 1, 2)


def test_a_prefetch_is_short_and_replaces_no_predicted_expert() -> None:
    cache = ExpertCache(LAYER_OF, capacity=8)
    run(cache, [0, 1, 2, 3])
    run(cache, [4, 5, 6, 7])
    cache.prefetch([8, 4, 5, 9, 10, 6, 11, 7])
    read = [read_next(cache) for _ in range(3)]
    assert read == [8, 9, None]
    assert len(read) - 1 == 8 // PREFETCH_SHARE
    assert cache.resident > {4, 5, 6, 7, 8, 9}


def test_predictions_for_a_layer_end_with_its_call() -> None:
    cache = ExpertCache(LAYER_OF, capacity=12)
    cache.prefetch([4, 5])
    run(cache, [6])
    assert cache.resident == {4, 5, 6} or cache.resident == {6}
    assert cache.next_read() is None


def test_a_lower_limit_drops_the_surplus() -> None:
    cache = ExpertCache(LAYER_OF, capacity=12)
    run(cache, [0, 1, 2, 3])
    cache.capacity = 1
    assert len(cache.drop_surplus()) == 3
    assert len(cache.resident) == 1
    assert cache.evicted == {"limit": 3}


def test_a_lower_limit_in_mid_call_spares_the_wave_in_use() -> None:
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


def test_a_failed_read_can_be_tried_again() -> None:
    cache = ExpertCache(LAYER_OF, capacity=12)
    call(cache, [0])
    read = cache.next_read()
    assert read is not None
    assert cache.fail(read)
    assert not cache.pending
    cache.finish()
    assert cache.next_read() is None
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
def test_calls_get_their_experts_whatever_the_order_of_events(
    calls: list[tuple[int, set[int], list[int], int | None]], capacity: int, dice: random.Random
) -> None:
    """Each call gets all its experts in order, and the cache holds no more than its capacity after it."""
    cache = ExpertCache(LAYER_OF, capacity)
    for layer, experts, predicted, limit in calls:
        wanted = [layer * EXPERTS + expert for expert in sorted(experts)]
        cache.prefetch(predicted)
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
            elif (read := cache.next_read()) and dice.random() < 0.5:
                # That was the read's last piece.
                cache.complete(read)
                cache.drop_surplus()
        assert got == wanted
        cache.finish()
        cache.drop_surplus()
        while read_next(cache) is not None:
            cache.drop_surplus()
        assert len(cache.resident) <= capacity
