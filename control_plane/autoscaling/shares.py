"""Divides the memory for experts among the functions: pure arithmetic with whole experts.

A function's need shows in its reads from disk. Functions with the most reads per expert of their share get
more, a bounded part at a time, from those with the fewest. Nothing moves between functions with similar
reads per expert: a move is made only if it would not be reversed should the reads stay the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from control_plane.autoscaling.footprint import BlockSize

MOVED_PART = 50
"""At most 1/MOVED_PART of all experts moves at a time."""
ADVANTAGE = 1.25
"""How many times more reads per expert the receiving function must have than the giving one."""


@dataclass(frozen=True)
class Use:
    """A function's share of the memory, and what it makes of it."""

    share: int
    """Experts that it may hold; 0 for a function without a share yet."""
    resident: int
    """Experts that it holds in memory."""
    reads: float
    """Experts that it reads from disk per second, smoothed."""


def divide(pool: int, blocks: Mapping[str, BlockSize], use: Mapping[str, Use]) -> dict[str, int]:
    """The next shares of the functions in `use`, in experts.

    Each share is between its block's least and its size, and their sum is at most `pool`. If the pool is
    smaller than the sum of all leasts, each function gets its least.
    """
    shares = {name: min(max(of.share, blocks[name].least), blocks[name].experts) for name, of in use.items()}
    bounds = {name: blocks[name] for name in use}
    free = pool - sum(shares.values())
    if free < 0:
        return _shrunk(pool, bounds, shares)
    # A small rest stays free: the memory of functions and control plane varies, and shares should not.
    if free >= max(1, pool // MOVED_PART) or any(not of.share for of in use.values()):
        shares = _spread(free, bounds, shares)
    return _moved(max(1, pool // MOVED_PART), bounds, shares, use)


def _shrunk(pool: int, bounds: Mapping[str, BlockSize], shares: Mapping[str, int]) -> dict[str, int]:
    """Take the same part from every function's share beyond its least."""
    least = {name: block.least for name, block in bounds.items()}
    beyond = sum(shares.values()) - sum(least.values())
    room = max(pool - sum(least.values()), 0)
    shrunk = {
        name: least[name] + (share - least[name]) * room // beyond if beyond else share
        for name, share in shares.items()
    }
    return _spread(max(pool - sum(shrunk.values()), 0), bounds, shrunk)


def _spread(free: int, bounds: Mapping[str, BlockSize], shares: Mapping[str, int]) -> dict[str, int]:
    """Distribute `free` experts in proportion to what each function lacks of its block."""
    lacking = {name: bounds[name].experts - share for name, share in shares.items()}
    total = sum(lacking.values())
    free = min(free, total)
    if not free:
        return dict(shares)
    spread = {name: share + free * lacking[name] // total for name, share in shares.items()}
    left = free - sum(spread.values()) + sum(shares.values())
    # Rounding leaves fewer experts than there are functions; they go to those that lack most.
    for name in sorted(lacking, key=lambda name: (-lacking[name], name))[:left]:
        spread[name] += spread[name] < bounds[name].experts
    return spread


def _moved(
    most: int, bounds: Mapping[str, BlockSize], shares: dict[str, int], use: Mapping[str, Use]
) -> dict[str, int]:
    """Move up to `most` experts, each to the function with the most reads per expert."""
    shares = dict(shares)

    def unused(name: str) -> int:
        return shares[name] - use[name].resident

    for _ in range(most):
        # A function below its share reads to fill it, which is no sign that it needs more.
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
