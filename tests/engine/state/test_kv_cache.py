"""The cache returns the keys and values written to it, and a freed lane holds nothing of them."""

import mmap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

from control_plane.engine.kernels import load_dense_kernel
from control_plane.engine.state.kv_cache import CacheRows, KVCache, KVCacheShape
from control_plane.engine.state.sequence import Sequence
from control_plane.errors import OutOfCache
from tests.support.scheduling import make_sequence

SHAPE = KVCacheShape(num_layers=2, num_kv_heads=2, head_dim=96, dtype=np.dtype(np.float32))
"""A row of 384 bytes, of which a page of memory is no multiple."""
LANES = 3
LONGEST = 40


def make_cache(num_pages: int = 12, num_lanes: int = LANES, max_length: int = LONGEST) -> KVCache:
    return KVCache(SHAPE, num_pages, num_lanes, max_length, load_dense_kernel(), threads=1)


Tokens = NDArray[np.float32]
_random = np.random.default_rng(0)


def random_tokens(length: int) -> Tokens:
    """Keys and values [layers, 2, length, heads, head_dim], of which no two are equal."""
    size = SHAPE.num_layers, 2, length, SHAPE.num_kv_heads, SHAPE.head_dim
    return _random.standard_normal(size, np.float32)


def unturned(length: int, head_dim: int = SHAPE.head_dim) -> tuple[Tokens, Tokens]:
    """The rotation by an angle of zero, which does not change keys."""
    return np.ones((length, head_dim), np.float32), np.zeros((length, head_dim), np.float32)


def write(cache: KVCache, rows: list[tuple[int, int, Tokens]]) -> None:
    """Write several sequences' tokens at once, each given by lane, first position and tokens."""
    lanes = [lane for lane, _, tokens in rows for _ in range(tokens.shape[2])]
    positions = [start + offset for _, start, tokens in rows for offset in range(tokens.shape[2])]
    places = CacheRows(np.array(lanes, int), np.array(positions, int), attending=np.array([], int))
    for layer in range(SHAPE.num_layers):
        keys, values = np.concatenate([tokens[layer] for _, _, tokens in rows], axis=1)
        cache.attend(layer, keys, keys, values, unturned(len(keys)), places, scaling=1.0)


def read(cache: KVCache, lane: int, length: int) -> Tokens:
    """Keys and values [layers, 2, length, heads, head_dim] of the lane's first tokens."""
    layers = [np.stack(cache.read(layer, lane, length)) for layer in range(SHAPE.num_layers)]
    return np.stack(layers).swapaxes(2, 3)


class Cache(RuleBasedStateMachine):
    """Sequences start, write some tokens at a time, and end. The test keeps a copy of what each wrote."""

    @initialize()
    def open(self) -> None:
        self.cache = make_cache()
        self.written: dict[Sequence, Tokens] = {}

    @precondition(lambda self: self.cache.pages.num_free_lanes)
    @rule()
    def come(self) -> None:
        """A new sequence's lane is empty, even if another sequence used it before."""
        sequence = make_sequence(1, LONGEST - 1)
        self.cache.pages.allocate(sequence, LONGEST)
        self.written[sequence] = random_tokens(0)
        assert not read(self.cache, self.cache.pages.lane(sequence), LONGEST).any()

    @precondition(lambda self: self.written)
    @rule(lengths=st.lists(st.integers(1, 16), min_size=LANES, max_size=LANES))
    def write(self, lengths: list[int]) -> None:
        rows = []
        for (sequence, past), length in zip(list(self.written.items()), lengths, strict=False):
            tokens = random_tokens(min(length, LONGEST - past.shape[2]))
            rows.append((self.cache.pages.lane(sequence), past.shape[2], tokens))
            self.written[sequence] = np.concatenate([past, tokens], axis=2)
        write(self.cache, rows)

    @precondition(lambda self: self.written and self.cache.pages.num_free_lanes)
    @rule(number=st.integers(0, LANES - 1), length=st.integers(0, LONGEST))
    def copy(self, number: int, length: int) -> None:
        """A new sequence has the first tokens of another, and room for more."""
        source = list(self.written)[number % len(self.written)]
        target = make_sequence(1, LONGEST - 1)
        length = min(length, self.written[source].shape[2])
        self.cache.pages.allocate(target, LONGEST)
        self.cache.copy(source, target, length)
        self.written[target] = self.written[source][:, :, :length]

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
            for length in (tokens.shape[2] // 2, tokens.shape[2]):
                expected = tokens[:, :, :length]
                assert np.array_equal(read(self.cache, self.cache.pages.lane(sequence), length), expected)


TestCache = Cache.TestCase
TestCache.settings = settings(max_examples=30, stateful_step_count=20)


def resident_nbytes() -> int:
    """This process's anonymous memory in bytes."""
    fields = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return int(fields["Anonymous"].split()[0]) << 10


def test_memory_is_taken_by_writing_and_returned_by_freeing() -> None:
    """64 MB of a cache of a terabyte; the bounds leave room for the process's other allocations."""
    shape = KVCacheShape(num_layers=8, num_kv_heads=8, head_dim=128, dtype=np.dtype(np.float32))
    length = (64 << 20) // shape.page_nbytes * shape.page_size
    keys = np.ones((length, shape.num_kv_heads, shape.head_dim), np.float32)
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
    for layer in range(shape.num_layers):
        lanes = np.full(length, cache.pages.lane(sequence))
        rows = CacheRows(lanes, np.arange(length), attending=np.array([], int))
        cache.attend(layer, keys, keys, keys, unturned(length, shape.head_dim), rows, scaling=1.0)
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
        expected = np.zeros_like(tokens) if lane == 1 else tokens
        assert np.array_equal(read(cache, lane, LONGEST), expected)


SHAPES = st.builds(
    KVCacheShape,
    num_layers=st.integers(1, 3),
    num_kv_heads=st.integers(1, 3),
    head_dim=st.integers(1, 1100),
    dtype=st.sampled_from([np.dtype(np.float32), np.dtype(np.uint16)]),
)


@given(shape=SHAPES, num_tokens=st.integers(1, 5000))
def test_sizes(shape: KVCacheShape, num_tokens: int) -> None:
    """Pages touch no more memory than is counted, except for rounding to pages of memory."""
    row_nbytes = shape.head_dim * shape.dtype.itemsize
    heads = 2 * shape.num_layers * shape.num_kv_heads
    assert shape.page_size >= 16
    assert shape.page_nbytes == heads * row_nbytes * shape.page_size
    length = shape.lane_length(num_tokens)
    assert num_tokens <= length < num_tokens + mmap.PAGESIZE
    assert length * row_nbytes % mmap.PAGESIZE == 0
    pages = -(-num_tokens // shape.page_size)
    touched = heads * -(-pages * shape.page_size * row_nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    # A page of few tokens that cannot fill a page of memory: at most half of it stays empty.
    assert touched <= pages * shape.page_nbytes * 2


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_page_nbytes(dtype: type[np.generic]) -> None:
    shape = KVCacheShape(num_layers=2, num_kv_heads=2, head_dim=64, dtype=np.dtype(dtype))
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
