"""The cache returns the keys and values written to it, and a freed lane holds nothing of them."""

import mmap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

from control_plane.engine.kernels import Scores, load_dense_kernel
from control_plane.engine.state.kv_cache import CacheRows, KVCache
from control_plane.engine.state.kv_cache_shape import KVCacheShape, KVLayer
from control_plane.engine.state.sequence import Sequence
from control_plane.errors import OutOfCache
from tests.support.scheduling import make_sequence

F32 = np.dtype(np.float32)
SHAPE = KVCacheShape.uniform(2, 2, 96, F32)
"""A row of 384 bytes, of which a page of memory is no multiple."""
MIXED = KVCacheShape(
    (
        KVLayer(2, 96, 96),
        KVLayer(1, 24, 16),
        KVLayer(2, 96, 96),
        KVLayer(3, 16, 24),
        KVLayer(1, 24, 20, values_in_keys=True),
    ),
    F32,
)
"""Layers of several sizes, some of which have keys and values of different sizes, or values in the keys."""
LANES = 3
LONGEST = 40


def make_cache(
    num_pages: int = 12, num_lanes: int = LANES, max_length: int = LONGEST, shape: KVCacheShape = SHAPE
) -> KVCache:
    return KVCache(shape, num_pages, num_lanes, max_length, load_dense_kernel(), threads=1)


Tokens = list[tuple[NDArray[np.float32], NDArray[np.float32]]]
"""Keys and values [length, heads, size] of each layer."""
_random = np.random.default_rng(0)


def random_tokens(length: int, shape: KVCacheShape = SHAPE) -> Tokens:
    """Keys and values, of which no two are equal."""
    tokens = []
    for heads, key_size, value_size, values_in_keys in shape.layers:
        keys = _random.standard_normal((length, heads, key_size), np.float32)
        values = _random.standard_normal((length, heads, value_size), np.float32)
        tokens.append((keys, keys[..., :value_size] if values_in_keys else values))
    return tokens


def length_of(tokens: Tokens) -> int:
    return len(tokens[0][0])


def first(tokens: Tokens, length: int) -> Tokens:
    return [(keys[:length], values[:length]) for keys, values in tokens]


def joined(*parts: Tokens) -> Tokens:
    return [
        (np.concatenate(keys), np.concatenate(values))
        for keys, values in (zip(*layers, strict=True) for layers in zip(*parts, strict=True))
    ]


def are_equal(some: Tokens, other: Tokens) -> bool:
    pairs = zip(some, other, strict=True)
    return all(np.array_equal(a, b) for one, two in pairs for a, b in zip(one, two, strict=True))


def write(cache: KVCache, rows: list[tuple[int, int, Tokens]]) -> None:
    """Write several sequences' tokens at once, each given by lane, first position and tokens."""
    lanes = [lane for lane, _, tokens in rows for _ in range(length_of(tokens))]
    positions = [start + offset for _, start, tokens in rows for offset in range(length_of(tokens))]
    places = CacheRows(np.array(lanes, int), np.array(positions, int))
    for layer, (keys, values) in enumerate(joined(*(tokens for _, _, tokens in rows))):
        own_values = None if cache.shape.layers[layer].values_in_keys else values
        if layer % 2:
            cache.write(layer, places, keys, own_values)
        else:
            cache.attend(layer, keys, keys, own_values, places, Scores(1.0))


def read(cache: KVCache, lane: int, length: int) -> Tokens:
    """Keys and values of the lane's first tokens."""
    layers = (cache.read(layer, lane, length) for layer in range(len(cache.shape.layers)))
    return [(keys.swapaxes(0, 1), values.swapaxes(0, 1)) for keys, values in layers]


class Cache(RuleBasedStateMachine):
    """Sequences start, write some tokens at a time, and end. The test keeps a copy of what each wrote."""

    @initialize(shape=st.sampled_from([SHAPE, MIXED]))
    def open(self, shape: KVCacheShape) -> None:
        self.cache = make_cache(num_pages=LANES * LONGEST, shape=shape)
        self.written: dict[Sequence, Tokens] = {}

    @precondition(lambda self: self.cache.pages.num_free_lanes)
    @rule()
    def come(self) -> None:
        """A new sequence's lane is empty, even if another sequence used it before."""
        sequence = make_sequence(1, LONGEST - 1)
        self.cache.pages.allocate(sequence, LONGEST)
        self.written[sequence] = random_tokens(0, self.cache.shape)
        found = read(self.cache, self.cache.pages.lane(sequence), LONGEST)
        assert not any(array.any() for layer in found for array in layer)

    @precondition(lambda self: self.written)
    @rule(lengths=st.lists(st.integers(1, 16), min_size=LANES, max_size=LANES))
    def write(self, lengths: list[int]) -> None:
        rows = []
        for (sequence, past), length in zip(list(self.written.items()), lengths, strict=False):
            tokens = random_tokens(min(length, LONGEST - length_of(past)), self.cache.shape)
            rows.append((self.cache.pages.lane(sequence), length_of(past), tokens))
            self.written[sequence] = joined(past, tokens)
        write(self.cache, rows)

    @precondition(lambda self: self.written and self.cache.pages.num_free_lanes)
    @rule(number=st.integers(0, LANES - 1), length=st.integers(0, LONGEST))
    def copy(self, number: int, length: int) -> None:
        """A new sequence has the first tokens of another, and room for more."""
        source = list(self.written)[number % len(self.written)]
        target = make_sequence(1, LONGEST - 1)
        length = min(length, length_of(self.written[source]))
        self.cache.pages.allocate(target, LONGEST)
        self.cache.copy(source, target, length)
        self.written[target] = first(self.written[source], length)

    @precondition(lambda self: self.written)
    @rule(number=st.integers(0, LANES - 1))
    def hand_over(self, number: int) -> None:
        """A new sequence has the lane of another."""
        source = list(self.written)[number % len(self.written)]
        heir = make_sequence(1, LONGEST - 1)
        self.cache.pages.hand_over(source, heir)
        self.written[heir] = self.written.pop(source)

    @precondition(lambda self: self.written)
    @rule(number=st.integers(0, LANES - 1))
    def free(self, number: int) -> None:
        sequence = list(self.written)[number % len(self.written)]
        del self.written[sequence]
        for _ in range(2):
            self.cache.free(sequence)

    @invariant()
    def everything_written_is_read(self) -> None:
        for sequence, tokens in self.written.items():
            for length in (length_of(tokens) // 2, length_of(tokens)):
                found = read(self.cache, self.cache.pages.lane(sequence), length)
                assert are_equal(found, first(tokens, length))


TestCache = Cache.TestCase
TestCache.settings = settings(max_examples=30, stateful_step_count=20)


def resident_nbytes() -> int:
    """This process's anonymous memory in bytes."""
    fields = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return int(fields["Anonymous"].split()[0]) << 10


def test_memory_is_taken_by_writing_and_returned_by_freeing() -> None:
    """64 MB of a cache of a terabyte; the bounds leave room for the process's other allocations."""
    shape = KVCacheShape.uniform(8, 8, 128, F32)
    length = (64 << 20) // shape.page_nbytes * shape.page_size
    keys = np.ones((length, 8, 128), np.float32)
    before = resident_nbytes()
    cache = KVCache(
        shape,
        num_pages=(1 << 40) // shape.page_nbytes,
        num_lanes=64,
        max_length=1 << 15,
        kernel=load_dense_kernel(),
        threads=1,
    )
    sequence = make_sequence(length)
    cache.pages.allocate(sequence, length)
    assert resident_nbytes() - before < 8 << 20
    for layer in range(8):
        lanes = np.full(length, cache.pages.lane(sequence))
        cache.write(layer, CacheRows(lanes, np.arange(length)), keys, keys)
    assert 56 << 20 < resident_nbytes() - before < 72 << 20
    cache.free(sequence)
    assert resident_nbytes() - before < 8 << 20


def test_freeing_a_lane_does_not_change_its_neighbours() -> None:
    cache = make_cache()
    sequences = [make_sequence(1, LONGEST - 1) for _ in range(LANES)]
    tokens = random_tokens(LONGEST)
    for sequence in sequences:
        cache.pages.allocate(sequence, LONGEST)
    lanes = [cache.pages.lane(sequence) for sequence in sequences]
    write(cache, [(lane, 0, tokens) for lane in lanes])
    middle = lanes.index(1)
    cache.free(sequences[middle])
    for lane in lanes:
        freed = [(np.zeros_like(keys), np.zeros_like(values)) for keys, values in tokens]
        assert are_equal(read(cache, lane, LONGEST), freed if lane == 1 else tokens)


SHAPES = st.builds(
    KVCacheShape,
    st.lists(
        st.builds(KVLayer, st.integers(1, 3), st.integers(1, 1100), st.integers(1, 1100), st.booleans()),
        min_size=1,
        max_size=3,
    ).map(tuple),
    st.sampled_from([np.dtype(np.float32), np.dtype(np.uint16)]),
)


@given(shape=SHAPES, num_tokens=st.integers(1, 5000))
def test_sizes(shape: KVCacheShape, num_tokens: int) -> None:
    """Pages touch no more memory than is counted, except for rounding to pages of memory."""
    rows = [
        size * shape.dtype.itemsize
        for heads, key_size, value_size, values_in_keys in shape.layers
        for size in (key_size, value_size)[: 1 if values_in_keys else 2]
        for _ in range(heads)
    ]
    assert shape.page_size >= 16
    assert shape.page_nbytes == sum(rows) * shape.page_size
    length = shape.lane_length(num_tokens)
    assert num_tokens <= length < num_tokens + mmap.PAGESIZE
    assert all(length * nbytes % mmap.PAGESIZE == 0 for nbytes in rows)
    tokens = -(-num_tokens // shape.page_size) * shape.page_size
    touched = sum(-(-tokens * nbytes // mmap.PAGESIZE) * mmap.PAGESIZE for nbytes in rows)
    # A page of few tokens that cannot fill a page of memory: at most half of it stays empty.
    assert touched <= sum(rows) * tokens * 2


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_page_nbytes(dtype: type[np.generic]) -> None:
    shape = KVCacheShape.uniform(2, 2, 64, np.dtype(dtype))
    cache = KVCache(shape, num_pages=1, num_lanes=1, max_length=1000, kernel=load_dense_kernel(), threads=1)
    arrays = [array for layer in range(2) for array in cache.read(layer, 0, shape.page_size)]
    assert shape.page_nbytes == sum(array.nbytes for array in arrays)
    assert {array.dtype for array in arrays} == {np.dtype(dtype)}


@pytest.mark.parametrize(
    ("num_pages", "longest", "fits"),
    [
        pytest.param(3, 1000, 48, id="all pages"),
        pytest.param(3, 48, 48, id="both"),
        pytest.param(9, 50, 50, id="a lane"),
    ],
)
def test_a_sequence_that_could_never_fit_is_refused(num_pages: int, longest: int, fits: int) -> None:
    cache = make_cache(num_pages, max_length=longest)
    assert cache.max_length == fits
    cache.check_fits(make_sequence(fits - 1, 1))
    cache.check_fits(make_sequence(fits, 0))
    with pytest.raises(OutOfCache, match=f"{fits + 1} tokens do not fit into the KV cache"):
        cache.check_fits(make_sequence(1, fits))


def test_a_full_cache_still_fits_later() -> None:
    """Whether a sequence fits alone does not depend on the sequences that run now."""
    cache = make_cache(num_pages=3)
    cache.pages.allocate(make_sequence(1), 3 * SHAPE.page_size)
    cache.check_fits(make_sequence(1, LONGEST - 1))
    assert cache.pages.num_free_pages == 0


@pytest.mark.parametrize(("num_lanes", "max_length"), [(1 << 10, 1 << 36), (1 << 10, 1 << 62)])
def test_a_cache_larger_than_the_address_space(num_lanes: int, max_length: int) -> None:
    with pytest.raises((OSError, OverflowError)):
        KVCache(
            SHAPE,
            num_pages=max_length,
            num_lanes=num_lanes,
            max_length=max_length,
            kernel=load_dense_kernel(),
            threads=1,
        )


def test_only_layers_with_keys_and_values_of_one_size_are_the_layer_program_s() -> None:
    cache = make_cache(shape=MIXED)
    assert [cache.kernel_layer(layer)[1] for layer in (0, 2)] == [0, 1]
    for layer in (1, 3, 4):
        with pytest.raises(ValueError, match=f"keys and values of layer {layer} are not in one array"):
            cache.kernel_layer(layer)
