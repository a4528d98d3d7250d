"""Which experts of a layer go into one function: those that tokens use together, the coldest last.

What is maximised is how many pairs of experts that a token uses are in the same function. That serves both
ends: each such pair is, for two experts a token, one call less, and as experts that are used often make most
pairs with each other, they gather in some functions and leave the cold ones to others.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Groups = list[tuple[int, ...]]


def pack(use: NDArray[np.int64], together: NDArray[np.int64], experts_per_function: int) -> Groups:
    """The experts of one layer in groups of `experts_per_function`, each ascending; the last may be smaller.

    `use` [E] is how often each was used, `together` [E, E] (symmetric) how often two were by the same token.
    Groups come from the hottest to the coldest, as far as they have the same size. Never are fewer pairs in
    the same group than with groups of consecutive experts.
    """
    pairs = together * (1 - np.eye(len(use), dtype=np.int64))
    sizes = _sizes(len(use), experts_per_function)
    consecutive = np.repeat(np.arange(len(sizes)), sizes)
    candidates = [_exchanged(start, pairs) for start in (_gathered(use, pairs, sizes), consecutive)]
    best = max(candidates, key=lambda group_of: pairs_inside(group_of, pairs))
    groups = [tuple(np.flatnonzero(best == group).tolist()) for group in range(len(sizes))]
    return sorted(groups, key=lambda group: (-len(group), -int(use[list(group)].sum()), group))


def pairs_inside(group_of: NDArray[np.int64], together: NDArray[np.int64]) -> int:
    """How often two different experts of the same group were used by the same token."""
    same = group_of[:, None] == group_of
    return int(together[same].sum() - together.diagonal().sum()) // 2


def _sizes(num_experts: int, experts_per_function: int) -> list[int]:
    starts = range(0, num_experts, experts_per_function)
    return [min(experts_per_function, num_experts - start) for start in starts]


def _gathered(use: NDArray[np.int64], pairs: NDArray[np.int64], sizes: Sequence[int]) -> NDArray[np.int64]:
    """Each expert's group [E]: the hottest that is left, then what is used most with those that are in."""
    group_of = np.full(len(use), -1)
    for group, size in enumerate(sizes):
        with_group = np.zeros(len(use), np.int64)
        for _ in range(size):
            left = np.flatnonzero(group_of < 0)
            chosen = left[np.lexsort((-use[left], -with_group[left]))[0]]
            group_of[chosen] = group
            with_group += pairs[chosen]
    return group_of


def _exchanged(group_of: NDArray[np.int64], pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """The groups after every exchange of two experts that brings more pairs together, the best one first."""
    group_of = group_of.copy()
    while True:
        members = (group_of[:, None] == np.arange(group_of.max() + 1)).astype(np.int64)
        # [i, j]: what expert i gains by taking the place of expert j.
        moved = (pairs @ members)[:, group_of]
        moved -= moved.diagonal()[:, None].copy()
        gain = moved + moved.T - 2 * pairs
        gain[group_of[:, None] == group_of] = 0
        one, other = np.unravel_index(gain.argmax(), gain.shape)
        if gain[one, other] <= 0:
            return group_of
        group_of[[one, other]] = group_of[[other, one]]
