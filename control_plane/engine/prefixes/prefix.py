"""Tokens whose keys and values stay in memory after their sequence has ended."""

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from control_plane.engine.state.sequence import Sequence

TokenIds = NDArray[np.int32]

LEAST_TOKENS = 16
"""A shorter prefix, such as the tokens that all prompts begin with, is computed sooner than found."""


@dataclass(eq=False)
class Prefix:
    """Holds a lane and pages, as a sequence does."""

    tenant: str
    salt: str
    """Separates prompts within a tenant."""
    owner: str
    """The one that its memory counts for: see `SchedulingPolicy.owner`."""
    weight: float
    """The owner's."""
    token_ids: TokenIds
    """All tokens that were computed."""
    uses: int
    """The number of sequences that have had a part of it, the first among them."""
    floor: float = 0.0
    """See `Floors`."""
    num_shared: int = 0
    """Tokens that another has as well."""


@dataclass(frozen=True)
class Match:
    """What a sequence can continue from."""

    source: Prefix | Sequence
    length: int
    """Tokens that both begin with, less than the sequence has: the last one's row gives its next token."""

    @property
    def is_whole(self) -> bool:
        """Whether the source is a prefix that the sequence has all tokens of."""
        return isinstance(self.source, Prefix) and self.length == len(self.source.token_ids)


def longest_match(
    token_ids: TokenIds,
    candidates: Iterable[tuple[Prefix | Sequence, TokenIds]],
    usable: Callable[[Prefix | Sequence, int], int],
) -> Match | None:
    """The candidate that shares most tokens; of several, the one with the fewest others.

    `usable` says how many of those that a candidate shares can be had. None if there are none worth taking.
    """
    best, least_other = None, 0
    for source, tokens in candidates:
        length = usable(source, min(num_common(token_ids, tokens), len(token_ids) - 1))
        other = len(tokens) - length
        if length < LEAST_TOKENS:
            continue
        if best is None or (length, -other) > (best.length, -least_other):
            best, least_other = Match(source, length), other
    return best


def num_common(left: TokenIds, right: TokenIds) -> int:
    """The number of tokens that both begin with."""
    size = min(len(left), len(right))
    different = left[:size] != right[:size]
    first = int(different.argmax()) if size else 0
    return first if size and different[first] else size


def as_token_ids(tokens: Items[int]) -> TokenIds:
    """Tokens as an array that compares fast."""
    return np.array(tokens, np.int32)
