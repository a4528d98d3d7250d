"""Pages are conserved and belong to one sequence each, whatever comes and goes."""

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from control_plane.engine.kv_cache import KVCache, KVCacheShape
from control_plane.engine.sequence import SamplingParams, Sequence
from control_plane.errors import OutOfCache

SHAPE = KVCacheShape(num_layers=2, num_kv_heads=2, head_dim=3, dtype=torch.float32, page_size=4)


def make_sequence(max_length: int) -> Sequence:
    return Sequence("test", "tenant", [0], SamplingParams(max_tokens=max_length - 1))


def random_tokens(length: int) -> torch.Tensor:
    """[layers, 2, length, heads, head_dim]: keys and values."""
    return torch.randn(SHAPE.num_layers, 2, length, SHAPE.num_kv_heads, SHAPE.head_dim)


def write(cache: KVCache, sequence: Sequence, start: int, tokens: torch.Tensor) -> None:
    for layer, (keys, values) in enumerate(tokens):
        cache.write(layer, sequence, start, keys, values)


def read(cache: KVCache, sequence: Sequence, length: int) -> torch.Tensor:
    layers = [torch.stack(cache.read(layer, sequence, length)) for layer in range(SHAPE.num_layers)]
    return torch.stack(layers)


class Cache(RuleBasedStateMachine):
    """Sequences come, write some tokens at a time, and go; beside the cache is what each has written."""

    @initialize(num_pages=st.integers(4, 8))
    def open(self, num_pages: int) -> None:
        torch.manual_seed(0)
        self.cache = KVCache(SHAPE, num_pages)
        self.written: dict[Sequence, torch.Tensor] = {}

    def pick(self, number: int) -> Sequence:
        return list(self.written)[number % len(self.written)]

    @rule(max_length=st.integers(1, 16))
    def allocate(self, max_length: int) -> None:
        sequence = make_sequence(max_length)
        if self.cache.can_allocate(sequence):
            self.cache.allocate(sequence)
            self.written[sequence] = random_tokens(0)

    @precondition(lambda self: self.written)
    @rule(number=st.integers(0, 11), length=st.integers(4, 16))
    def write(self, number: int, length: int) -> None:
        sequence = self.pick(number)
        past = self.written[sequence]
        tokens = random_tokens(min(length, sequence.max_length - past.shape[2]))
        write(self.cache, sequence, past.shape[2], tokens)
        self.written[sequence] = torch.cat([past, tokens], dim=2)

    @precondition(lambda self: self.written)
    @rule(number=st.integers(0, 11))
    def free(self, number: int) -> None:
        sequence = self.pick(number)
        del self.written[sequence]
        for _ in range(2):
            self.cache.free(sequence)

    @invariant()
    def pages_are_free_or_held(self) -> None:
        held = sum(-(-sequence.max_length // SHAPE.page_size) for sequence in self.written)
        assert self.cache.num_free_pages == self.cache.num_pages - held
        for pages in range(1, self.cache.num_pages + 1):
            fits = self.cache.can_allocate(make_sequence(pages * SHAPE.page_size))
            assert fits == (pages <= self.cache.num_free_pages)

    @invariant()
    def everything_written_is_read(self) -> None:
        for sequence, tokens in self.written.items():
            for length in range(tokens.shape[2] + 1):
                assert torch.equal(read(self.cache, sequence, length), tokens[:, :, :length])


TestCache = Cache.TestCase
TestCache.settings = settings(max_examples=40, stateful_step_count=30)


def test_pages_that_are_not_neighbours() -> None:
    torch.manual_seed(0)
    cache = KVCache(SHAPE, num_pages=5)
    small = [make_sequence(SHAPE.page_size) for _ in range(5)]
    for sequence in small:
        cache.allocate(sequence)
    for sequence in small[::2]:
        cache.free(sequence)
    scattered = make_sequence(3 * SHAPE.page_size)
    cache.allocate(scattered)
    beside = random_tokens(SHAPE.page_size)
    for sequence in small[1::2]:
        write(cache, sequence, 0, beside)
    tokens = random_tokens(scattered.max_length)
    write(cache, scattered, 0, tokens[:, :, :7])
    write(cache, scattered, 7, tokens[:, :, 7:])

    for length in range(scattered.max_length + 1):
        assert torch.equal(read(cache, scattered, length), tokens[:, :, :length])
    for sequence in small[1::2]:
        assert torch.equal(read(cache, sequence, SHAPE.page_size), beside)


def test_a_sequence_that_could_never_fit_is_refused() -> None:
    cache = KVCache(SHAPE, num_pages=3)
    cache.check_fits(make_sequence(12))
    with pytest.raises(OutOfCache, match="13 tokens do not fit into the KV cache of 12"):
        cache.check_fits(make_sequence(13))


def test_a_full_cache_still_fits_later() -> None:
    """Whether a sequence fits alone does not depend on who is there now."""
    cache = KVCache(SHAPE, num_pages=3)
    cache.allocate(make_sequence(12))
    cache.check_fits(make_sequence(12))
    assert not cache.can_allocate(make_sequence(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_page_takes_the_bytes_that_it_says(dtype: torch.dtype) -> None:
    shape = KVCacheShape(num_layers=2, num_kv_heads=2, head_dim=3, dtype=dtype, page_size=4)
    cache = KVCache(shape, num_pages=1)
    sequence = make_sequence(4)
    cache.allocate(sequence)
    tensors = [tensor for layer in range(2) for tensor in cache.read(layer, sequence, 4)]
    assert shape.page_nbytes == sum(tensor.nbytes for tensor in tensors)
    assert {tensor.dtype for tensor in tensors} == {dtype}
