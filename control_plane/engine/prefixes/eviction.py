"""Chooses the prefixes that give up their memory: pure decisions on plain data.

Prefixes of the owner whose share of memory is largest go first, so that one with many conversations evicts
its own. Among an owner's, those go first that save the fewest tokens for each page, by the policy
GreedyDual-Size (Cao and Irani, USENIX 1997): what an evicted one was worth, a new one is worth from the
start, so prefixes that are no longer used go, too. Tokens that another prefix has, too, are not saved by
this one. One that has come back is worth twice as much as one that has not; more uses say little.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")

MOST_USES = 2
"""More count as this."""


@dataclass(frozen=True)
class Candidate(Generic[Item]):
    """A prefix that may be evicted."""

    item: Item
    owner: str
    weight: float
    """The owner's."""
    amount: int
    """What it holds of the resource that is needed: pages, or a lane."""
    priority: float
    is_wanted: bool = False
    """Whether a sequence waits that could continue from it."""


def choose(candidates: Iterable[Candidate[Item]], shares: Mapping[str, float], missing: int) -> list[Item]:
    """The items that free `missing` of the resource, or all of them if that is less.

    `shares` are what owners hold of the resource in all, divided by their weights: more than the candidates'.
    """
    shares = dict(shares)
    chosen: list[Item] = []
    left = sorted(candidates, key=lambda each: (each.is_wanted, each.priority))
    while missing > 0 and left:
        # Those that are wanted go only when no others are left.
        tier = [each for each in left if each.is_wanted == left[0].is_wanted]
        largest = max({each.owner for each in tier}, key=lambda owner: (shares.get(owner, 0.0), owner))
        victim = next(each for each in tier if each.owner == largest)
        left.remove(victim)
        chosen.append(victim.item)
        missing -= victim.amount
        shares[largest] = shares.get(largest, 0.0) - victim.amount / victim.weight
    return chosen


def worth(uses: int, tokens: int, pages: int) -> float:
    """What a prefix is worth that saves so many tokens and takes so many pages."""
    return min(uses, MOST_USES) * tokens / pages


@dataclass
class Floors:
    """The priorities that prefixes begin with when they are used: an owner's last evicted one's."""

    _floors: dict[str, float] = field(default_factory=dict)

    def __getitem__(self, owner: str) -> float:
        return self._floors.get(owner, 0.0)

    def evicted(self, owner: str, priority: float) -> None:
        """Note that a prefix was evicted."""
        self._floors[owner] = max(priority, self[owner])

    def retain(self, owners: Collection[str]) -> None:
        """Forget all others."""
        self._floors = {owner: floor for owner, floor in self._floors.items() if owner in owners}
