"""Limits per minute, as token buckets (https://en.wikipedia.org/wiki/Token_bucket)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MINUTE = 60.0

SLACK = 1e-6
"""Tolerated rounding error, as a share of the capacity.

Without it, a client that waits for exactly the time in Retry-After could be refused again.
"""


@dataclass(eq=False)
class Charge:
    """The part of one request's amount that is not refilled yet."""

    amount: float
    settled: bool = False
    """Whether the request has ended, so that none of the charge can be refunded any more."""


class Bucket:
    """A bucket of `capacity` units, which refills evenly within 60 s. Times are in seconds.

    Refilling pays off the oldest charge first. So the bucket knows how much of each charge is still to be
    refilled, and refunds no more than that: a larger refund would let a later burst exceed the limit.
    """

    def __init__(self, capacity: int, now: float) -> None:
        self.capacity = capacity
        self.charges: list[Charge] = []
        self._at = now

    def to_json(self) -> dict[str, Any]:
        """The state for a database; `from_json` reads it."""
        charges = [[charge.amount, charge.settled] for charge in self.charges]
        return {"capacity": self.capacity, "at": self._at, "charges": charges}

    @classmethod
    def from_json(cls, state: Mapping[str, Any] | None) -> "Bucket | None":
        """The bucket that `to_json` wrote; None stays None."""
        if state is None:
            return None
        bucket = cls(state["capacity"], state["at"])
        bucket.charges = [Charge(amount, settled) for amount, settled in state["charges"]]
        return bucket

    def index(self, charge: Charge) -> int | None:
        """The index of a charge in `charges`; None if it is not there any more."""
        return next((number for number, own in enumerate(self.charges) if own is charge), None)

    def resize(self, capacity: int, now: float) -> None:
        """Change the capacity. Usage beyond a smaller capacity is forgiven."""
        self._advance(now)
        self.capacity = capacity
        self._refill(self.used(now) - capacity)

    def used(self, now: float) -> float:
        """The amount that is not refilled yet."""
        return max(0.0, sum(charge.amount for charge in self.charges) - self._refilled(now))

    def wait(self, amount: int, now: float) -> float:
        """Seconds until `amount`, at most the capacity, can be taken if nothing else is taken meanwhile."""
        missing = self.used(now) + amount - self.capacity
        return missing / self.capacity * MINUTE if missing > self.capacity * SLACK else 0.0

    def charge(self, amount: int, now: float) -> Charge:
        """Take an amount for which `wait` is 0."""
        self._advance(now)
        charge = Charge(float(amount))
        self.charges.append(charge)
        return charge

    def settle(self, charge: Charge, unused: int, now: float) -> None:
        """End a charge, and refund the part of the unused amount that is not refilled yet.

        A negative `unused` is charged in addition, even beyond the capacity.
        """
        self._advance(now)
        charge.amount -= min(charge.amount, unused)
        charge.settled = True
        self._merge()

    def _advance(self, now: float) -> None:
        self._refill(self._refilled(now))
        self._at = max(self._at, now)

    def _refilled(self, now: float) -> float:
        return max(0.0, now - self._at) * self.capacity / MINUTE

    def _refill(self, amount: float) -> None:
        for charge in self.charges:
            step = min(charge.amount, max(0.0, amount))
            charge.amount -= step
            amount -= step
        self._merge()

    def _merge(self) -> None:
        """Merge neighbouring settled charges, so that the number of charges stays bounded."""
        merged: list[Charge] = []
        for charge in self.charges:
            if charge.settled and merged and merged[-1].settled:
                charge.amount += merged.pop().amount
            # An empty charge that is not settled may still grow: `unused` can be negative.
            if charge.amount or not charge.settled:
                merged.append(charge)
        self.charges = merged
