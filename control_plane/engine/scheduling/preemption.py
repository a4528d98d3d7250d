"""Chooses the sequences that give up a scarce resource: pure decisions on plain data.

The resource is anything that running sequences hold amounts of: pages of the KV cache, lanes, or places in a
step. Owners compete for it, and each owner's newest sequences are taken first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Holder(Generic[Item]):
    """The amounts that one owner's running sequences hold."""

    items: Sequence[tuple[Item, int]]
    """Each sequence with its amount, the oldest first."""
    weight: float

    def share(self, more: int = 0) -> float:
        """The owner's total amount and `more`, divided by its weight."""
        return (sum(amount for _, amount in self.items) + more) / self.weight

    def without_newest(self) -> "Holder[Item]":
        """The holder after its newest sequence has given up its amount."""
        return Holder(self.items[:-1], self.weight)


def victims_of_growth(holders: Mapping[str, Holder[Item]], missing: int) -> list[Item]:
    """The sequences to take from so that a running sequence can grow by `missing`.

    Always the newest sequence of the owner with the largest share. The growing sequence may be among them;
    it then has to wait.
    """
    holders = dict(holders)
    chosen: list[Item] = []
    while missing > 0:
        owner = max(holders, key=lambda name: holders[name].share())
        item, amount = holders[owner].items[-1]
        chosen.append(item)
        missing -= amount
        holders[owner] = holders[owner].without_newest()
    return chosen


def victims_of_admission(
    holders: Mapping[str, Holder[Item]], owner: str, weight: float, wanted: int, missing: int
) -> list[Item] | None:
    """The sequences to take from so that the owner's next sequence can start.

    It needs `wanted` in all, of which `missing` is not free. Returns None when it has to wait.

    An owner gives up a sequence only if its remaining share is at least the new sequence's owner's share
    after admission. Otherwise two owners would take from each other in turn, and neither would progress.
    """
    holders = dict(holders)
    share = holders.get(owner, Holder([], weight)).share(more=wanted)
    chosen: list[Item] = []
    while missing > 0:
        others = [name for name in holders if name != owner and holders[name].items]
        largest = max(others, key=lambda name: holders[name].share(), default=None)
        if largest is None:
            return None
        item, amount = holders[largest].items[-1]
        holders[largest] = holders[largest].without_newest()
        if holders[largest].share() < share:
            return None
        chosen.append(item)
        missing -= amount
    return chosen
