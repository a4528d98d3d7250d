"""The memory of sequences whose model keeps states of fixed size besides keys and values."""

from collections.abc import Sequence as Items
from dataclasses import dataclass, field

from control_plane.engine.state.kv_cache import KVCache
from control_plane.engine.state.kv_pages import Holder
from control_plane.engine.state.lane_states import LaneStates, StateShape, place_nbytes


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
    def _pages_per_state(self) -> int:
        """Pages of states that are kept."""
        return -(-place_nbytes(self.state_shapes) // self.shape.page_nbytes)

    @property
    def keeps_prefixes(self) -> bool:
        return False

    def usable(self, holder: Holder, length: int) -> int:
        return self.states.usable(self.pages.lane(holder), length)

    def pages_to_keep(self, holder: Holder) -> int:
        kept = self.states.num_kept_after(self.pages.lane(holder))
        return kept * self._pages_per_state - self.pages.extra(holder)

    def keep(self, holder: Holder) -> None:
        self.states.keep(self.pages.lane(holder))
        self._count_kept(holder)

    def drop_kept(self, holder: Holder) -> int:
        freed = self.pages.extra(holder)
        self.states.drop_kept(self.pages.lane(holder))
        self._count_kept(holder)
        return freed

    def trim(self, holder: Holder, length: int) -> None:
        self.states.cut(self.pages.lane(holder), length)
        self._count_kept(holder)
        super().trim(holder, length)

    def free(self, holder: Holder) -> None:
        lane = self.pages.lane(holder) if self.pages.holds(holder) else None
        super().free(holder)
        if lane is not None:
            self.states.free(lane)

    def copy(self, source: Holder, target: Holder, length: int) -> None:
        if length:
            self.states.copy(self.pages.lane(source), self.pages.lane(target), length)
            super().copy(source, target, length)

    def _count_kept(self, holder: Holder) -> None:
        kept = self.states.num_kept(self.pages.lane(holder))
        self.pages.set_extra(holder, kept * self._pages_per_state)
