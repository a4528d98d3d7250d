"""Who holds how much of the KV cache: pure counting, no memory."""

from dataclasses import dataclass, field

from control_plane.engine.sequence import Sequence


@dataclass(frozen=True)
class Holding:
    """What one sequence has of the cache."""

    lane: int
    num_pages: int


@dataclass
class KVPages:
    """Pages and lanes. A running sequence has one lane, and as many pages as its tokens need."""

    num_pages: int
    page_size: int
    """Tokens in a page."""
    num_lanes: int
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
        """Lanes that no sequence has."""
        return len(self._free_lanes)

    @property
    def num_tokens(self) -> int:
        """Tokens that all pages hold."""
        return self.num_pages * self.page_size

    def pages_for(self, num_tokens: int) -> int:
        """Pages that hold this many tokens."""
        return -(-num_tokens // self.page_size)

    def holds(self, sequence: Sequence) -> bool:
        """Whether the sequence has a lane."""
        return sequence in self._holdings

    def lane(self, sequence: Sequence) -> int:
        """The lane of a sequence that has one."""
        return self._holdings[sequence].lane

    def held(self, sequence: Sequence) -> int:
        """Pages of the sequence; 0 for one without a lane."""
        return self._holdings[sequence].num_pages if sequence in self._holdings else 0

    def missing(self, sequence: Sequence, num_tokens: int) -> int:
        """Pages that the sequence needs besides those that it has, to hold this many tokens."""
        return max(self.pages_for(num_tokens) - self.held(sequence), 0)

    def allocate(self, sequence: Sequence, num_tokens: int) -> None:
        """Give the sequence room for this many tokens. There must be pages, and for a new one a lane."""
        missing = self.missing(sequence, num_tokens)
        lane = self.lane(sequence) if sequence in self._holdings else self._free_lanes.pop()
        self._holdings[sequence] = Holding(lane, self.held(sequence) + missing)
        self._num_free -= missing

    def free(self, sequence: Sequence) -> int | None:
        """Take everything back from the sequence; returns the lane that it had, if it had one."""
        holding = self._holdings.pop(sequence, None)
        if holding is None:
            return None
        self._num_free += holding.num_pages
        self._free_lanes.append(holding.lane)
        return holding.lane
