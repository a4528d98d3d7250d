"""Whose memory is taken when there is too little: a pure decision."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Owner = TypeVar("Owner")
Item = TypeVar("Item")


@dataclass(frozen=True)
class Holder(Generic[Item]):
    """What one tenant's running sequences hold."""

    items: Sequence[tuple[Item, int]]
    """Each with its amount, the oldest first."""
    weight: float

    def share(self, more: int = 0) -> float:
        """What it holds and wants besides, by its weight."""
        return (sum(amount for _, amount in self.items) + more) / self.weight

    def without_newest(self) -> "Holder[Item]":
        """What is left when the newest gives up its amount."""
        return Holder(self.items[:-1], self.weight)


def victims_of_growth(holders: Mapping[str, Holder[Item]], missing: int) -> list[Item]:
    """What has to go so that something that runs already gets `missing` more: the newest of the largest.

    The one that grows may be among them: then it has to wait, too.
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
    """What has to go so that the owner's next one, which wants `wanted`, gets the `missing` part of it.

    None when nobody has to make room: only whoever would still hold at least as much as the owner then
    does gives something up, so that two tenants never take from each other in turn.
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
