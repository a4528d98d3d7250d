"""Counts the pages and lanes of memory that sequences hold. It allocates no memory itself."""

from dataclasses import dataclass, field

from control_plane.engine.state.sequence import Sequence


@dataclass(frozen=True)
class Holding:
    """The lane and the number of pages of one sequence."""

    lane: int
    num_pages: int


@dataclass
class KVPages:
    """A running sequence holds one lane, and as many pages as its tokens need."""

    num_pages: int
    page_size: int
    """Tokens in a page."""
    num_lanes: int
    pages_per_sequence: int = 0
    """Pages that a sequence needs besides those of its tokens."""
    _holdings: dict[Sequence, Holding] = field(init=False, default_factory=dict)
    _free_lanes: list[int] = field(init=False)
    _num_free: int = field(init=False)

    def __post_init__(self) -> None:
        self._num_free = self.num_pages
        self._free_lanes = list(range(self.num_lanes - 1, -1, -1))

    @property
    def num_free_pages(self) -> int:
        """Pages that no sequence holds."""
        return self._num_free

    @property
    def num_free_lanes(self) -> int:
        """Lanes that no sequence holds."""
        return len(self._free_lanes)

    @property
    def num_tokens(self) -> int:
        """Tokens of a sequence that has all pages."""
        return max(self.num_pages - self.pages_per_sequence, 0) * self.page_size

    def pages_for(self, num_tokens: int) -> int:
        """Pages that a sequence of this many tokens needs."""
        return self.pages_per_sequence - (-num_tokens // self.page_size)

    def holds(self, sequence: Sequence) -> bool:
        """Whether the sequence holds a lane."""
        return sequence in self._holdings

    def lane(self, sequence: Sequence) -> int:
        """The sequence's lane. Raises `KeyError` for a sequence without one."""
        return self._holdings[sequence].lane

    def held(self, sequence: Sequence) -> int:
        """Pages that the sequence holds; 0 for a sequence without a lane."""
        return self._holdings[sequence].num_pages if sequence in self._holdings else 0

    def missing(self, sequence: Sequence, num_tokens: int) -> int:
        """Pages that the sequence needs for this many tokens, in addition to those that it holds."""
        return max(self.pages_for(num_tokens) - self.held(sequence), 0)

    def allocate(self, sequence: Sequence, num_tokens: int) -> None:
        """Give the sequence room for this many tokens, and a lane if it has none. Both must be free."""
        missing = self.missing(sequence, num_tokens)
        lane = self.lane(sequence) if sequence in self._holdings else self._free_lanes.pop()
        self._holdings[sequence] = Holding(lane, self.held(sequence) + missing)
        self._num_free -= missing

    def hand_over(self, sequence: Sequence, heir: Sequence) -> None:
        """Make the sequence's lane and pages those of another, which must have none."""
        self._holdings[heir] = self._holdings.pop(sequence)

    def free(self, sequence: Sequence) -> int | None:
        """Free the sequence's pages and lane; returns the lane, or None if it had none."""
        holding = self._holdings.pop(sequence, None)
        if holding is None:
            return None
        self._num_free += holding.num_pages
        self._free_lanes.append(holding.lane)
        return holding.lane
