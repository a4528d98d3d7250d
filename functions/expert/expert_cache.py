"""Decides which experts are read next and which are dropped, without touching bytes, files or threads.

Experts are named by position: the order in which they lie in the block, layer by layer.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from functions.expert.eviction import NextUse

PREFETCH_SHARE = 4
"""A prefetch reads at most capacity / PREFETCH_SHARE experts."""


@dataclass(frozen=True)
class ExpertRead:
    """One expert to be read from disk."""

    position: int
    replaces: int | None
    """The dropped expert whose place it takes; None for a free place."""
    is_prefetch: bool
    """No call has asked for the expert yet: reads that a call waits for come first."""


class ExpertCache:
    """Room for `capacity` experts, one call at a time.

    The experts that a call computes with or still needs are dropped only when it cannot go on otherwise.
    """

    def __init__(
        self, layer_of: NDArray[np.int64], capacity: int, held: Callable[[], Iterable[int]] = tuple
    ) -> None:
        """`layer_of` [N] is each position's layer. `held` gives the experts that nobody may drop now."""
        self._held_now = held
        self.capacity = capacity
        self.resident: set[int] = set()
        self.prefetched = 0
        """Experts whose prefetch has begun."""
        self.prefetch_hits = 0
        """Prefetched experts that were called before they were dropped."""
        self.prefetch_wasted = 0
        """Prefetched experts that were dropped without having been called."""
        self.evicted: Counter[str] = Counter()
        """Dropped experts by reason: "room", "limit" or "idleness"."""
        self._layer_of = np.unique(layer_of, return_inverse=True)[1]
        """Each position's layer, counted from the block's first."""
        self.next_use = NextUse(self._layer_of)
        self._unrecorded: tuple[int, NDArray[np.int64], NDArray[np.int64], int] | None = None
        """The last call, as arguments of `NextUse.record`, until it is recorded."""
        self._reading: dict[int, ExpertRead] = {}
        """The read in progress, and a prefetch in pieces that a call's read has interrupted."""
        self._in_call = False
        self._pending: deque[int] = deque()
        """Experts that the call has not computed with yet."""
        self._computing: frozenset[int] = frozenset()
        """The call's present wave."""
        self._predicted: frozenset[int] = frozenset()
        """Experts that are predicted to be called next."""
        self._to_prefetch: deque[int] = deque()
        """Predicted experts whose reads have not begun."""
        self._uncalled: set[int] = set()
        """Prefetched experts in memory that have not been called since."""

    def call(self, positions: Sequence[int], rows_of: NDArray[np.int64], rows: int) -> int:
        """Begin a call of these ascending experts of one layer, expert i for rows_of[i] of its rows.

        Returns how many of the experts are not in memory.
        """
        self.record_call()
        layer = int(self._layer_of[positions[0]])
        self._unrecorded = layer, np.asarray(positions), rows_of, rows
        self._in_call = True
        self._pending = deque(positions)
        # The layer is called now, so its predictions that are not in this call were wrong.
        self._predicted = frozenset(p for p in self._predicted if self._layer_of[p] != layer)
        self._to_prefetch = deque(p for p in self._to_prefetch if p in self._predicted)
        begun = {read.position for read in self._reading.values() if read.is_prefetch}
        self.prefetch_hits += len((self._uncalled | begun).intersection(positions))
        self._uncalled.difference_update(positions)
        return len(set(positions) - self.resident)

    def record_call(self) -> None:
        """Let the last call count in the choice of victims, if it does not yet.

        That takes a while and is best done when nobody waits. The next choice of a victim does it otherwise.
        """
        if self._unrecorded is not None:
            self.next_use.record(*self._unrecorded)
            self._unrecorded = None

    @property
    def expects(self) -> bool:
        """Whether the next call has more to account for than its use: predictions, or the call before."""
        return bool(self._predicted) or self._unrecorded is not None

    def next_wave(self) -> list[int]:
        """The experts to compute with next; none while the call has to wait. Unpins the wave before."""
        wave = list(takewhile(self.resident.__contains__, self._pending))
        for _ in wave:
            self._pending.popleft()
        self._computing = frozenset(wave)
        return wave

    @property
    def pending(self) -> bool:
        """Whether waves of the call are still to come."""
        return bool(self._pending)

    @property
    def has_wave(self) -> bool:
        """Whether the next wave is in memory."""
        return bool(self._pending) and self._pending[0] in self.resident

    @property
    def has_reads(self) -> bool:
        """Whether something is to be read, as soon as there is room."""
        return bool(self._to_prefetch or self._reading) or not self.resident.issuperset(self._pending)

    def finish(self) -> None:
        """End the call, complete or not."""
        self._in_call = False
        self._pending.clear()
        self._computing = frozenset()

    def prefetch(self, positions: Sequence[int]) -> None:
        """Predict that these experts are called next, the likeliest first; replaces the last prediction."""
        self._predicted = frozenset(positions)
        absent = (p for p in positions if p not in self.resident and p not in self._reading)
        self._to_prefetch = deque(list(absent)[: self.capacity // PREFETCH_SHARE])

    def next_read(self) -> ExpertRead | None:
        """The next read; None when there is nothing to read, or no room before the call goes on."""
        demanded = next((p for p in self._pending if p not in self.resident), None)
        if demanded in self._reading:
            return self._begin(ExpertRead(demanded, None, is_prefetch=False))
        if demanded is not None:
            return self._read_called(demanded)
        if self._reading:
            return next(iter(self._reading.values()))
        while self._to_prefetch:
            position = self._to_prefetch.popleft()
            if position not in self.resident:
                return self._read_predicted(position)
        return None

    def complete(self, read: ExpertRead) -> None:
        """The expert has been read and is in memory."""
        del self._reading[read.position]
        self.resident.add(read.position)
        if read.is_prefetch and read.position not in self._pending:
            self._uncalled.add(read.position)

    def fail(self, read: ExpertRead) -> bool:
        """The expert could not be read; returns whether that ends the call."""
        self._reading.pop(read.position, None)
        needed = read.position in self._pending
        if needed:
            self._pending.clear()
        return needed

    def drop_surplus(self) -> list[int]:
        """Drop experts that exceed the capacity, unless the call needs them; returns their positions."""
        dropped = []
        while self._held > self._room and (idle := self._idle()):
            dropped.append(self._drop(self._victim(idle), "limit"))
        return dropped

    def drop_idle(self) -> list[int]:
        """Drop all experts that the call does not need; returns their positions."""
        self._predicted, self._to_prefetch = frozenset(), deque()
        return [self._drop(position, "idleness") for position in sorted(self._idle())]

    @property
    def _room(self) -> int:
        # A call computes with one expert at a time at least, whatever the capacity.
        return max(self.capacity, 1) if self._in_call else self.capacity

    @property
    def _held(self) -> int:
        return len(self.resident) + len(self._reading)

    def _idle(self) -> set[int]:
        """Experts in memory that no call needs."""
        return self.resident.difference(self._computing, self._pending, self._held_now())

    def _victim(self, candidates: Iterable[int]) -> int:
        self.record_call()
        return self.next_use.victim(np.fromiter(candidates, np.int64))

    def _read_called(self, position: int) -> ExpertRead | None:
        """Make room for an expert that the call needs.

        In this order: a free place; an idle expert, of those not predicted if there are any; an interrupted
        prefetch; and the expert that the call needs last, if the call can do nothing else.
        """
        if self._held < self._room:
            return self._begin(ExpertRead(position, None, is_prefetch=False))
        idle = self._idle()
        if candidates := idle - self._predicted or idle:
            victim = self._drop(self._victim(candidates), "room")
            return self._begin(ExpertRead(position, victim, is_prefetch=False))
        if self._reading:
            return self._begin(ExpertRead(position, self._cancel(), is_prefetch=False))
        if position == self._pending[0]:
            # The call waits for this one, and all others in memory are its own. The last is read again later.
            latest = next((p for p in reversed(self._pending) if p in self.resident), None)
            if latest is not None:
                return self._begin(ExpertRead(position, self._drop(latest, "room"), is_prefetch=False))
        return None

    def _read_predicted(self, position: int) -> ExpertRead | None:
        """Make room for a predicted expert, but not at the cost of another predicted or uncalled one."""
        replaces = None
        if self._held >= self._room:
            candidates = self._idle() - self._predicted - self._uncalled
            if not candidates:
                self._to_prefetch.clear()
                return None
            replaces = self._drop(self._victim(candidates), "room")
        self.prefetched += 1
        return self._begin(ExpertRead(position, replaces, is_prefetch=True))

    def _begin(self, read: ExpertRead) -> ExpertRead:
        self._reading[read.position] = read
        return read

    def _cancel(self) -> int:
        """Give up an interrupted prefetch; returns its position."""
        position, _ = self._reading.popitem()
        self.prefetch_wasted += 1
        return position

    def _drop(self, position: int, reason: str) -> int:
        self.resident.remove(position)
        self.evicted[reason] += 1
        if position in self._uncalled:
            self._uncalled.remove(position)
            self.prefetch_wasted += 1
        return position
