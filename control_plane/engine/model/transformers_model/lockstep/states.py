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
from control_plane.engine.state.kv_pages import Holder, KVPages
from control_plane.engine.state.lane_states import kept_lengths
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
    _kept: dict[int, dict[int, _State]] = field(default_factory=dict)
    """Copies of a lane's earlier states, by their lengths."""

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

    def usable(self, holder: Holder, length: int) -> int:
        lane = self.pages.lane(holder)
        lengths = {state.length for state in self._of(lane)}
        return max((each for each in lengths if each <= length), default=0)

    def pages_to_keep(self, holder: Holder) -> int:
        lane = self.pages.lane(holder)
        kept = kept_lengths({*self._kept.get(lane, ()), self._states[lane].length})
        return sum(map(self.pages.pages_for, kept)) - self.pages.extra(holder)

    @torch.inference_mode()
    def keep(self, holder: Holder) -> None:
        lane = self.pages.lane(holder)
        state = self._states[lane]
        kept = self._kept.setdefault(lane, {})
        kept[state.length] = _State(copy.deepcopy(state.cache), state.length)
        self._kept[lane] = {length: kept[length] for length in kept_lengths(kept)}
        self._count_kept(holder)

    def drop_kept(self, holder: Holder) -> int:
        freed = self.pages.extra(holder)
        self._kept.pop(self.pages.lane(holder), None)
        self._count_kept(holder)
        return freed

    @torch.inference_mode()
    def trim(self, holder: Holder, length: int) -> None:
        lane = self.pages.lane(holder)
        if self._states[lane].length != length:
            self._states[lane] = self._copied(lane, length)
        kept = self._kept.get(lane, {})
        self._kept[lane] = {each: state for each, state in kept.items() if each <= length}
        self._count_kept(holder)
        super().trim(holder, length)

    def free(self, holder: Holder) -> None:
        lane = self.pages.free(holder)
        if lane is not None:
            self._states.pop(lane, None)
            self._kept.pop(lane, None)

    @torch.inference_mode()
    def copy(self, source: Holder, target: Holder, length: int) -> None:
        if length == 0:
            return
        self._states[self.pages.lane(target)] = self._copied(self.pages.lane(source), length)

    def _of(self, lane: int) -> list[_State]:
        """All states of a lane."""
        current = self._states.get(lane)
        return [*([current] if current else []), *self._kept.get(lane, {}).values()]

    def _copied(self, lane: int, length: int) -> _State:
        for state in self._of(lane):
            if state.length == length:
                return _State(copy.deepcopy(state.cache), length)
        raise ValueError(f"a lane has no state after {length} tokens")

    def _count_kept(self, holder: Holder) -> None:
        lengths = self._kept.get(self.pages.lane(holder), {})
        self.pages.set_extra(holder, sum(map(self.pages.pages_for, lengths)))
