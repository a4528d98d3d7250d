"""How many experts each function may hold: pure arithmetic over whole experts.

A function earns its share by the reads that it causes: those that read most, for each expert that they may
hold, get more, a bounded part at a time, from those that read least. Where reads for each expert are alike,
nothing moves. A move is made only if it would not be undone were the reads the same after it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from control_plane.autoscaling.footprint import BlockSize

MOVED_PART = 50
"""At most one in so many experts moves at a time."""
ADVANTAGE = 1.25
"""How many times as much must be read for an expert where it goes to, as where it comes from."""


@dataclass(frozen=True)
class Use:
    """What a function does with its share."""

    share: int
    """Experts that it may hold; 0 for one that has none yet."""
    resident: int
    """Experts that it holds."""
    reads: float
    """Experts a second that it reads, smoothed."""


def divide(pool: int, blocks: Mapping[str, BlockSize], use: Mapping[str, Use]) -> dict[str, int]:
    """The next shares of the functions in `use`: their sum is at most `pool`, each between its block's
    least and its size. Where the pool is smaller than what is least, each has its least.
    """
    shares = {name: min(max(of.share, blocks[name].least), blocks[name].experts) for name, of in use.items()}
    bounds = {name: blocks[name] for name in use}
    free = pool - sum(shares.values())
    if free < 0:
        return _shrunk(pool, bounds, shares)
    # A little that is free stays so: what functions and control plane need varies, and shares should not.
    if free >= max(1, pool // MOVED_PART) or any(not of.share for of in use.values()):
        shares = _spread(free, bounds, shares)
    return _moved(max(1, pool // MOVED_PART), bounds, shares, use)


def _shrunk(pool: int, bounds: Mapping[str, BlockSize], shares: Mapping[str, int]) -> dict[str, int]:
    """All give up the same part of what they have beyond the least."""
    least = {name: block.least for name, block in bounds.items()}
    beyond = sum(shares.values()) - sum(least.values())
    room = max(pool - sum(least.values()), 0)
    shrunk = {
        name: least[name] + (share - least[name]) * room // beyond if beyond else share
        for name, share in shares.items()
    }
    return _spread(max(pool - sum(shrunk.values()), 0), bounds, shrunk)


def _spread(free: int, bounds: Mapping[str, BlockSize], shares: Mapping[str, int]) -> dict[str, int]:
    """Hand out what is free, in proportion to what each lacks of its block."""
    lacking = {name: bounds[name].experts - share for name, share in shares.items()}
    total = sum(lacking.values())
    free = min(free, total)
    if not free:
        return dict(shares)
    spread = {name: share + free * lacking[name] // total for name, share in shares.items()}
    left = free - sum(spread.values()) + sum(shares.values())
    # Rounding has left fewer than there are functions; those that lack most have them.
    for name in sorted(lacking, key=lambda name: (-lacking[name], name))[:left]:
        spread[name] += spread[name] < bounds[name].experts
    return spread


def _moved(
    most: int, bounds: Mapping[str, BlockSize], shares: dict[str, int], use: Mapping[str, Use]
) -> dict[str, int]:
    """Move up to `most` experts, each from where least is read for it to where most is."""
    shares = dict(shares)

    def unused(name: str) -> int:
        return shares[name] - use[name].resident

    for _ in range(most):
        # One that is not full yet reads what it will keep: that is no sign that it lacks room.
        earners = [
            name
            for name, of in use.items()
            if shares[name] < bounds[name].experts and of.resident >= of.share - 1 and of.reads > 0
        ]
        donors = [name for name in use if shares[name] > bounds[name].least]
        if not earners or not donors:
            break
        earner = max(earners, key=lambda name: use[name].reads / (shares[name] + 1))
        donor = min(donors, key=lambda name: (use[name].reads / (shares[name] - 1), -unused(name)))
        gained = use[earner].reads / (shares[earner] + 1)
        lost = use[donor].reads / (shares[donor] - 1)
        if earner == donor or gained <= ADVANTAGE * lost:
            break
        shares[earner] += 1
        shares[donor] -= 1
    return shares
