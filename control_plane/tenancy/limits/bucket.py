"""A limit per minute, as a token bucket (https://en.wikipedia.org/wiki/Token_bucket)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MINUTE = 60.0

SLACK = 1e-6
"""Of the capacity: what floating point may lose while a client waits for exactly as long as it was told."""


@dataclass(eq=False)
class Charge:
    """What one request has taken and the bucket has not got back yet."""

    amount: float
    settled: bool = False
    """Whether no more of it can be given back by its owner."""


class Bucket:
    """Holds `capacity` and is refilled evenly, all of it in 60 s. Times are in seconds, and never go back.

    What is refilled is the oldest charge. That makes it known how much of a charge is still to be refilled,
    which is the most of it that can be given back: more would let a later burst exceed the limit.
    """

    def __init__(self, capacity: int, now: float) -> None:
        self.capacity = capacity
        self.charges: list[Charge] = []
        self._at = now

    def to_json(self) -> dict[str, Any]:
        """For a database; `from_json` reads it."""
        charges = [[charge.amount, charge.settled] for charge in self.charges]
        return {"capacity": self.capacity, "at": self._at, "charges": charges}

    @classmethod
    def from_json(cls, state: Mapping[str, Any] | None) -> "Bucket | None":
        """What was written, if there was one."""
        if state is None:
            return None
        bucket = cls(state["capacity"], state["at"])
        bucket.charges = [Charge(amount, settled) for amount, settled in state["charges"]]
        return bucket

    def index(self, charge: Charge) -> int | None:
        """Which of its charges that is; None for one that it has settled."""
        return next((number for number, own in enumerate(self.charges) if own is charge), None)

    def resize(self, capacity: int, now: float) -> None:
        """Change the limit, from now on."""
        self._advance(now)
        self.capacity = capacity
        self._refill(self.used(now) - capacity)

    def used(self, now: float) -> float:
        """How much is missing."""
        return max(0.0, sum(charge.amount for charge in self.charges) - self._refilled(now))

    def wait(self, amount: int, now: float) -> float:
        """Seconds until the amount can be taken, if nobody else takes any; no more than the capacity."""
        missing = self.used(now) + amount - self.capacity
        return missing / self.capacity * MINUTE if missing > self.capacity * SLACK else 0.0

    def charge(self, amount: int, now: float) -> Charge:
        """Take the amount, for which there must be no wait."""
        self._advance(now)
        charge = Charge(float(amount))
        self.charges.append(charge)
        return charge

    def settle(self, charge: Charge, unused: int, now: float) -> None:
        """End a charge, and give back of it what was not used and has not been refilled meanwhile.

        A negative amount is what was used besides, even if there was not so much.
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
        """Keep no more charges than are open, and one between any two of those."""
        merged: list[Charge] = []
        for charge in self.charges:
            if charge.settled and merged and merged[-1].settled:
                charge.amount += merged.pop().amount
            # One that is not settled may turn out to have been larger.
            if charge.amount or not charge.settled:
                merged.append(charge)
        self.charges = merged
