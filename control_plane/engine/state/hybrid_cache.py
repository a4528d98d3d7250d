"""The memory of sequences whose model keeps states of fixed size besides keys and values."""

from collections.abc import Sequence as Items
from dataclasses import dataclass, field

from control_plane.engine.state.kv_cache import KVCache
from control_plane.engine.state.lane_states import LaneStates, StateShape, place_nbytes
from control_plane.engine.state.sequence import Sequence


@dataclass
class HybridCache(KVCache):
    """A KV cache, and states for each lane. Pages count both."""

    state_shapes: Items[StateShape]
    states: LaneStates = field(init=False)

    def __post_init__(self) -> None:
        """Raises `OSError` or `OverflowError` if the machine cannot reserve that many addresses."""
        super().__post_init__()
        self.states = LaneStates(self.state_shapes, self.num_lanes)

    @property
    def pages_per_sequence(self) -> int:
        return -(-2 * place_nbytes(self.state_shapes) // self.shape.page_nbytes)

    @property
    def keeps_prefixes(self) -> bool:
        return False

    def free(self, sequence: Sequence) -> None:
        lane = self.pages.lane(sequence) if self.pages.holds(sequence) else None
        super().free(sequence)
        if lane is not None:
            self.states.free(lane)

    def copy(self, source: Sequence, target: Sequence, length: int) -> None:
        if length:
            self.states.copy(self.pages.lane(source), self.pages.lane(target), length)
            super().copy(source, target, length)
