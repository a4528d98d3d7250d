"""The memory of sequences whose model keeps other things of them than keys and values."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from transformers import DynamicCache

from control_plane.engine.model.transformers_model.lockstep.cache import PAGE_SIZE, working_copy
from control_plane.engine.model.transformers_model.lockstep.state_size import StateSize
from control_plane.engine.scheduling.chunk import Chunk
from control_plane.engine.state.kv_pages import KVPages
from control_plane.engine.state.sequence import Sequence
from control_plane.engine.state.sequence_memory import SequenceMemory
from control_plane.errors import EngineError


class _State(NamedTuple):
    cache: DynamicCache
    length: int
    """Tokens that it is the state after."""


@dataclass
class SequenceStates(SequenceMemory):
    """The states of running sequences, by their lanes."""

    size: StateSize
    new: Callable[[], DynamicCache]
    """Makes the state before the first token."""
    num_pages: int
    num_lanes: int
    max_length: int
    """Tokens of the longest sequence."""
    pages: KVPages = field(init=False)
    _states: dict[int, _State] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pages = KVPages(self.num_pages, PAGE_SIZE, self.num_lanes, self.size.pages_per_sequence)
        self.max_length = min(self.max_length, self.pages.num_tokens)

    @property
    def nbytes(self) -> int:
        return self.num_pages * self.size.page_nbytes

    @property
    def keeps_prefixes(self) -> bool:
        return False

    def before(self, chunk: Chunk) -> DynamicCache:
        """A copy of the state before a chunk, which the step may change. `commit` makes it the sequence's."""
        if chunk.start == 0:
            return self.new()
        state = self._states.get(self.pages.lane(chunk.sequence))
        if state is None or state.length != chunk.start:
            raise EngineError(f"a sequence has no state after {chunk.start} tokens")
        return working_copy(state.cache)

    def commit(self, chunk: Chunk, cache: DynamicCache) -> None:
        """Make this the state of the chunk's sequence."""
        self._states[self.pages.lane(chunk.sequence)] = _State(cache, chunk.end)

    def free(self, sequence: Sequence) -> None:
        lane = self.pages.free(sequence)
        if lane is not None:
            self._states.pop(lane, None)

    @torch.inference_mode()
    def copy(self, source: Sequence, target: Sequence, length: int) -> None:
        if length == 0:
            return
        state = self._states[self.pages.lane(source)]
        if state.length != length:
            raise ValueError(f"the state is that after {state.length} tokens, not after {length}")
        self._states[self.pages.lane(target)] = _State(copy.deepcopy(state.cache), length)
