"""Decides which experts are read next and which are dropped. It knows nothing of bytes, files or threads.

Experts are named by position: the order in which they lie in the block, layer by layer.
"""

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from functions.expert.eviction import NextUse

READ_AHEAD_SHARE = 4
"""At most one in so many of the experts that there is room for is read ahead at a time."""


@dataclass(frozen=True)
class Load:
    """An expert to be read, into a free place or into that of another one, which is dropped."""

    position: int
    replaces: int | None
    ahead: bool
    """Nobody has called it yet: whatever is called comes first."""


class ExpertCache:
    """Room for `capacity` experts, one call at a time.

    What the call works with and what it still needs stays as long as there is any other way to go on.
    """

    def __init__(self, layer_of: NDArray[np.int64], capacity: int) -> None:
        """`layer_of` [N] is each position's layer."""
        self.capacity = capacity
        self.resident: set[int] = set()
        self.prefetched = 0
        """How many experts were read ahead."""
        self.prefetch_hits = 0
        self.prefetch_wasted = 0
        self.evicted: Counter[str] = Counter()
        """For "room", the "limit" or "idleness"."""
        self._layer_of = np.unique(layer_of, return_inverse=True)[1]
        """Counted from the block's first."""
        self._next_use = NextUse(self._layer_of)
        self._uncounted: tuple[int, NDArray[np.int64], NDArray[np.int64], int] | None = None
        """The last call, as long as nothing had to be decided by it."""
        self._loading: dict[int, Load] = {}
        """The one that is being read, and one that was read ahead in part when another was called."""
        self._in_call = False
        self._pending: deque[int] = deque()
        self._computing: frozenset[int] = frozenset()
        self._expected: frozenset[int] = frozenset()
        """What is likely to be called next."""
        self._ahead: deque[int] = deque()
        """Of those, what is still to be read."""
        self._unused: set[int] = set()
        """Read ahead, and not called since."""

    def call(self, positions: Sequence[int], rows_of: NDArray[np.int64], rows: int) -> int:
        """A call needs these ascending experts of one layer, expert i for rows_of[i] of its rows.

        Returns how many of them are not there yet.
        """
        self.count_call()
        layer = int(self._layer_of[positions[0]])
        self._uncounted = layer, np.asarray(positions), rows_of, rows
        self._in_call = True
        self._pending = deque(positions)
        # What was expected of this layer and is not called was a mistake.
        self._expected = frozenset(p for p in self._expected if self._layer_of[p] != layer)
        self._ahead = deque(p for p in self._ahead if p in self._expected)
        begun = {load.position for load in self._loading.values() if load.ahead}
        self.prefetch_hits += len((self._unused | begun).intersection(positions))
        self._unused.difference_update(positions)
        return len(set(positions) - self.resident)

    def count_call(self) -> None:
        """Let the last call count for what is to be dropped, if it does not yet.

        That takes a while, and is best done when nobody waits; by the next choice at the latest it is.
        """
        if self._uncounted is not None:
            self._next_use.record(*self._uncounted)
            self._uncounted = None

    def next_wave(self) -> list[int]:
        """The experts that the call goes on with; none while it has to wait. Those before are released."""
        wave = list(takewhile(self.resident.__contains__, self._pending))
        for _ in wave:
            self._pending.popleft()
        self._computing = frozenset(wave)
        return wave

    @property
    def pending(self) -> bool:
        """Whether the call needs more than it has been given."""
        return bool(self._pending)

    @property
    def has_wave(self) -> bool:
        """Whether the call could go on."""
        return bool(self._pending) and self._pending[0] in self.resident

    @property
    def has_reads(self) -> bool:
        """Whether something is to be read, as soon as there is room."""
        return bool(self._ahead or self._loading) or not self.resident.issuperset(self._pending)

    def finish(self) -> None:
        """The call is over, or given up."""
        self._in_call = False
        self._pending.clear()
        self._computing = frozenset()

    def expect(self, positions: Sequence[int]) -> None:
        """These are likely to be called next, the likeliest first. Forgets what was expected before."""
        self._expected = frozenset(positions)
        absent = (p for p in positions if p not in self.resident and p not in self._loading)
        self._ahead = deque(list(absent)[: self.capacity // READ_AHEAD_SHARE])

    def next_load(self) -> Load | None:
        """What to read now; None when there is nothing, or no room before the call goes on."""
        demanded = next((p for p in self._pending if p not in self.resident), None)
        if demanded in self._loading:
            return self._begin(Load(demanded, None, ahead=False))
        if demanded is not None:
            return self._load(demanded)
        if self._loading:
            return next(iter(self._loading.values()))
        while self._ahead:
            position = self._ahead.popleft()
            if position not in self.resident:
                return self._load_ahead(position)
        return None

    def loaded(self, load: Load) -> None:
        """It is there, whole."""
        del self._loading[load.position]
        self.resident.add(load.position)
        if load.ahead and load.position not in self._pending:
            self._unused.add(load.position)

    def failed(self, load: Load) -> bool:
        """It could not be read; returns whether the call ends with that."""
        self._loading.pop(load.position, None)
        needed = load.position in self._pending
        if needed:
            self._pending.clear()
        return needed

    def drop_surplus(self) -> list[int]:
        """Drops what there is no room for, as far as the call can do without; returns what is gone."""
        dropped = []
        while self._held > self._room and (idle := self._idle()):
            dropped.append(self._drop(self._victim(idle), "limit"))
        return dropped

    def drop_idle(self) -> list[int]:
        """Drops all that the call does not need; returns what is gone."""
        self._expected, self._ahead = frozenset(), deque()
        return [self._drop(position, "idleness") for position in sorted(self._idle())]

    @property
    def _room(self) -> int:
        return max(self.capacity, 1) if self._in_call else self.capacity

    @property
    def _held(self) -> int:
        return len(self.resident) + len(self._loading)

    def _idle(self) -> set[int]:
        """What the call does not need."""
        return self.resident.difference(self._computing, self._pending)

    def _victim(self, candidates: Iterable[int]) -> int:
        self.count_call()
        return self._next_use.victim(np.fromiter(candidates, np.int64))

    def _load(self, position: int) -> Load | None:
        """Make room for an expert that is called."""
        if self._held < self._room:
            return self._begin(Load(position, None, ahead=False))
        idle = self._idle()
        if candidates := idle - self._expected or idle:
            return self._begin(Load(position, self._drop(self._victim(candidates), "room"), ahead=False))
        if self._loading:
            return self._begin(Load(position, self._cancel(), ahead=False))
        if position == self._pending[0]:
            # The call is stuck; what it needs last is read a second time.
            latest = next((p for p in reversed(self._pending) if p in self.resident), None)
            if latest is not None:
                return self._begin(Load(position, self._drop(latest, "room"), ahead=False))
        return None

    def _load_ahead(self, position: int) -> Load | None:
        """Make room for an expert that is expected, if there is one to be dropped that is not."""
        replaces = None
        if self._held >= self._room:
            candidates = self._idle() - self._expected - self._unused
            if not candidates:
                self._ahead.clear()
                return None
            replaces = self._drop(self._victim(candidates), "room")
        self.prefetched += 1
        return self._begin(Load(position, replaces, ahead=True))

    def _begin(self, load: Load) -> Load:
        self._loading[load.position] = load
        return load

    def _cancel(self) -> int:
        """Give up what was read ahead in part."""
        position, _ = self._loading.popitem()
        self.prefetch_wasted += 1
        return position

    def _drop(self, position: int, reason: str) -> int:
        self.resident.remove(position)
        self.evicted[reason] += 1
        if position in self._unused:
            self._unused.remove(position)
            self.prefetch_wasted += 1
        return position
