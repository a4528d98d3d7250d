"""Pages are conserved and belong to one sequence each, whatever comes and goes."""

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from control_plane.engine.kv_cache import KVCache, KVCacheShape
from control_plane.engine.sequence import SamplingParams, Sequence
from control_plane.errors import OutOfCache

SHAPE = KVCacheShape(num_layers=2, num_kv_heads=2, head_dim=3, dtype=torch.float32, page_size=4)


def make_sequence(max_length: int) -> Sequence:
    return Sequence("test", "tenant", [0], SamplingParams(max_tokens=max_length - 1))


class CacheMachine(RuleBasedStateMachine):
    """Sequences come, write a chunk at a time and go; what each has written is kept beside the cache."""

    sequences = Bundle("sequences")

    @initialize(num_pages=st.integers(1, 12))
    def start(self, num_pages: int) -> None:
        self.cache = KVCache(SHAPE, num_pages)
        self.generator = torch.Generator().manual_seed(num_pages)
        # [layers, keys and values, tokens, heads, head_dim] of each sequence
        self.written: dict[Sequence, torch.Tensor] = {}

    @rule(target=sequences, max_length=st.integers(1, 30))
    def allocate(self, max_length: int) -> Sequence:
        sequence = make_sequence(max_length)
        ...
