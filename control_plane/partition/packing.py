"""*Packing*: decides which experts of a layer share a function, from a profile of the tokens' routing.

(Not to be confused with *packed* weights, the byte layout that the kernels read.)

It maximises the number of pairs of experts that a token uses together and that share a function. This has two
effects. With two experts per token, each such pair saves one call. And since the experts that are used most
have the most pairs with each other, they gather in a few functions, and cold experts in others.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Groups = list[tuple[int, ...]]


def pack(use: NDArray[np.int64], together: NDArray[np.int64], experts_per_function: int) -> Groups:
    """The experts of one layer in groups of `experts_per_function`, each ascending; the last may be smaller.

    `use` [E] counts the tokens that used each expert, `together` [E, E] (symmetric) those that used both of
    two experts. Groups of the same size are ordered from hot to cold. At least as many pairs share a group as
    with groups of consecutive experts.
    """
    pairs = together * (1 - np.eye(len(use), dtype=np.int64))
    sizes = _sizes(len(use), experts_per_function)
    consecutive = np.repeat(np.arange(len(sizes)), sizes)
    candidates = [_improved(start, pairs) for start in (_greedy(use, pairs, sizes), consecutive)]
    best = max(candidates, key=lambda group_of: pairs_inside(group_of, pairs))
    groups = [tuple(np.flatnonzero(best == group).tolist()) for group in range(len(sizes))]
    return sorted(groups, key=lambda group: (-len(group), -int(use[list(group)].sum()), group))


def pairs_inside(group_of: NDArray[np.int64], together: NDArray[np.int64]) -> int:
    """The number of times that one token used two different experts of the same group."""
    same = group_of[:, None] == group_of
    return int(together[same].sum() - together.diagonal().sum()) // 2


def _sizes(num_experts: int, experts_per_function: int) -> list[int]:
    starts = range(0, num_experts, experts_per_function)
    return [min(experts_per_function, num_experts - start) for start in starts]


def _greedy(use: NDArray[np.int64], pairs: NDArray[np.int64], sizes: Sequence[int]) -> NDArray[np.int64]:
    """The group of each expert [E]: the hottest one left, then those that are used most with the group."""
    group_of = np.full(len(use), -1)
    for group, size in enumerate(sizes):
        with_group = np.zeros(len(use), np.int64)
        for _ in range(size):
            left = np.flatnonzero(group_of < 0)
            chosen = left[np.lexsort((-use[left], -with_group[left]))[0]]
            group_of[chosen] = group
            with_group += pairs[chosen]
    return group_of


def _improved(group_of: NDArray[np.int64], pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Exchange two experts of different groups, the best exchange first, until none gains pairs."""
    group_of = group_of.copy()
    while True:
        members = (group_of[:, None] == np.arange(group_of.max() + 1)).astype(np.int64)
        # moved[i, j]: the pairs that expert i gains in the group of expert j, less those in its own group.
        # Each side of an exchange counts the pair (i, j), which stays apart: subtract it twice.
        moved = (pairs @ members)[:, group_of]
        moved -= moved.diagonal()[:, None].copy()
        gain = moved + moved.T - 2 * pairs
        gain[group_of[:, None] == group_of] = 0
        one, other = np.unravel_index(gain.argmax(), gain.shape)
        if gain[one, other] <= 0:
            return group_of
        group_of[[one, other]] = group_of[[other, one]]
