"""Counts the pages and lanes of memory that are held. It allocates no memory itself."""

from collections.abc import Hashable
from dataclasses import dataclass, field, replace

Holder = Hashable
"""A sequence, or what has taken over a sequence's memory."""


@dataclass(frozen=True)
class Holding:
    """The lane and the number of pages of one holder."""

    lane: int
    num_pages: int
    num_extra: int = 0
    """Those of them that are not for tokens."""


@dataclass
class KVPages:
    """A holder has one lane, and as many pages as its tokens need."""

    num_pages: int
    page_size: int
    """Tokens in a page."""
    num_lanes: int
    pages_per_sequence: int = 0
    """Pages that a holder needs besides those of its tokens."""
    _holdings: dict[Holder, Holding] = field(init=False, default_factory=dict)
    _free_lanes: list[int] = field(init=False)
    _num_free: int = field(init=False)

    def __post_init__(self) -> None:
        self._num_free = self.num_pages
        self._free_lanes = list(range(self.num_lanes - 1, -1, -1))

    @property
    def num_free_pages(self) -> int:
        """Pages that are free."""
        return self._num_free

    @property
    def num_free_lanes(self) -> int:
        """Lanes that are free."""
        return len(self._free_lanes)

    @property
    def num_tokens(self) -> int:
        """Tokens of a holder that has all pages."""
        return max(self.num_pages - self.pages_per_sequence, 0) * self.page_size

    def pages_for(self, num_tokens: int) -> int:
        """Pages that this many tokens need."""
        return self.pages_per_sequence - (-num_tokens // self.page_size)

    def holds(self, holder: Holder) -> bool:
        """Whether it holds a lane."""
        return holder in self._holdings

    def lane(self, holder: Holder) -> int:
        """A holder's lane. Raises `KeyError` for one without."""
        return self._holdings[holder].lane

    def held(self, holder: Holder) -> int:
        """Pages that it holds; 0 without a lane."""
        return self._holdings[holder].num_pages if holder in self._holdings else 0

    def extra(self, holder: Holder) -> int:
        """Those of the pages that it holds which are not for tokens."""
        return self._holdings[holder].num_extra

    def missing(self, holder: Holder, num_tokens: int) -> int:
        """Pages that it needs for this many tokens, in addition to those that it holds."""
        extra = self.extra(holder) if holder in self._holdings else 0
        return max(self.pages_for(num_tokens) + extra - self.held(holder), 0)

    def allocate(self, holder: Holder, num_tokens: int) -> None:
        """Give it room for this many tokens, and a lane if it has none. Both must be free."""
        missing = self.missing(holder, num_tokens)
        holding = self._holdings.get(holder) or Holding(self._free_lanes.pop(), 0)
        self._holdings[holder] = replace(holding, num_pages=holding.num_pages + missing)
        self._num_free -= missing

    def set_extra(self, holder: Holder, num_extra: int) -> None:
        """Let it hold so many pages besides those for its tokens. What it does not hold must be free."""
        holding = self._holdings[holder]
        more = num_extra - holding.num_extra
        self._holdings[holder] = Holding(holding.lane, holding.num_pages + more, num_extra)
        self._num_free -= more

    def hand_over(self, holder: Holder, heir: Holder) -> None:
        """Make a holder's lane and pages those of another, which must have none."""
        self._holdings[heir] = self._holdings.pop(holder)

    def trim(self, holder: Holder, num_tokens: int) -> None:
        """Free the pages that it does not need for this many tokens."""
        holding = self._holdings[holder]
        num_pages = min(holding.num_pages, self.pages_for(num_tokens) + holding.num_extra)
        self._holdings[holder] = replace(holding, num_pages=num_pages)
        self._num_free += holding.num_pages - num_pages

    def free(self, holder: Holder) -> int | None:
        """Free a holder's pages and lane; returns the lane, or None if it had none."""
        holding = self._holdings.pop(holder, None)
        if holding is None:
            return None
        self._num_free += holding.num_pages
        self._free_lanes.append(holding.lane)
        return holding.lane
