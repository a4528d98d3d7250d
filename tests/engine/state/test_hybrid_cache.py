"""States by lanes: what a step reads and writes, and what is left of a sequence that has ended."""

import numpy as np
import pytest

from control_plane.engine.kernels import load_dense_kernel
from control_plane.engine.state.hybrid_cache import HybridCache
from control_plane.engine.state.kv_cache_shape import KVCacheShape
from control_plane.engine.state.lane_states import LaneStates, StateShape, place_nbytes
from control_plane.engine.state.sequence import SamplingParams, Sequence
from control_plane.errors import EngineError, OutOfCache

SHAPES = [StateShape((3, 5), np.dtype(np.uint16)), StateShape((2, 64, 64), np.dtype(np.float32))]
LENGTH = 7


def sequence(prompt: int = LENGTH) -> Sequence:
    return Sequence("test", "tenant", [1] * prompt, SamplingParams(1))


def cache(num_pages: int = 100) -> HybridCache:
    shape = KVCacheShape.uniform(2, 1, 8, np.dtype(np.float32))
    return HybridCache(shape, num_pages, 4, 1000, load_dense_kernel(), 1, SHAPES)


def write(states: LaneStates, lane: int, value: int, length: int = LENGTH) -> None:
    """A step that makes a lane's states this value."""
    for array in states.arrays:
        array[states.target(lane)] = value
    states.commit(lane, length)


def values(states: LaneStates, lane: int, length: int = LENGTH) -> set[float]:
    place = states.source(lane, length)
    return {float(value) for array in states.arrays for value in np.unique(array[place])}


def test_a_step_that_is_not_committed_changes_nothing() -> None:
    states = LaneStates(SHAPES, 3)
    for lane in range(3):
        assert states.source(lane, 0) is None
        write(states, lane, 10 + lane)
    for array in states.arrays:
        array[states.target(1)] = 99
    assert [values(states, lane) for lane in range(3)] == [{10}, {11}, {12}]
    write(states, 1, 21, LENGTH + 1)
    assert values(states, 1, LENGTH + 1) == {21}
    with pytest.raises(EngineError, match="no state after 7 tokens"):
        states.source(1, LENGTH)


def test_a_freed_lane_is_zero() -> None:
    memory = cache()
    first, second = sequence(), sequence()
    for each in (first, second):
        memory.pages.allocate(each, LENGTH)
        write(memory.states, memory.pages.lane(each), 5)
    lane = memory.pages.lane(first)
    memory.free(first)
    memory.free(first)
    with pytest.raises(EngineError):
        memory.states.source(lane, LENGTH)
    for array in memory.states.arrays:
        assert not array[2 * lane : 2 * lane + 2].any()
    assert values(memory.states, memory.pages.lane(second)) == {5}
    memory.free(second)
    assert memory.pages.num_free_pages == memory.pages.num_pages


def test_states_are_copied_as_a_whole() -> None:
    memory = cache()
    source, target = sequence(), sequence()
    for each in (source, target):
        memory.pages.allocate(each, LENGTH)
    lanes = memory.pages.lane(source), memory.pages.lane(target)
    memory.copy(source, target, 0)
    write(memory.states, lanes[0], 5)
    with pytest.raises(ValueError, match="no states after 6 tokens"):
        memory.copy(source, target, LENGTH - 1)
    memory.copy(source, target, LENGTH)
    write(memory.states, lanes[0], 6, LENGTH + 1)
    assert values(memory.states, lanes[1]) == {5}


def test_pages_count_both_places_of_the_states() -> None:
    memory = cache()
    fixed = memory.pages.pages_per_sequence
    assert fixed * memory.shape.page_nbytes >= 2 * place_nbytes(SHAPES)
    assert (fixed - 1) * memory.shape.page_nbytes < 2 * place_nbytes(SHAPES)
    small = cache(num_pages=fixed + 1)
    assert small.max_length == small.shape.page_size
    with pytest.raises(OutOfCache):
        small.check_fits(sequence(small.max_length))
    assert cache(num_pages=fixed - 1).max_length == 0
