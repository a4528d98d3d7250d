"""Decides which gateway gets which function: pure functions, without input or output."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from control_plane.errors import ConfigError


@dataclass(frozen=True)
class GatewayCapacity:
    """A gateway, its functions, and its limit."""

    name: str
    """The gateway's name in error messages."""
    deployed: frozenset[str]
    """The names of all functions that stay on the gateway, those of others included."""
    max_functions: int | None
    """The most functions that the gateway's edition allows; None for no limit."""


def place(sizes: Mapping[str, int], gateways: Sequence[GatewayCapacity]) -> list[list[str]]:
    """The functions of each gateway, in the order of `sizes`, which maps each function to its bytes.

    Deployed functions stay where they are. Each other function goes to the gateway with room that has the
    fewest bytes of these functions. Raises `ConfigError` if there is no room for all of them.
    """
    placed: list[list[str]] = [[] for _ in gateways]
    for name in sizes:
        for gateway, names in zip(gateways, placed, strict=True):
            if name in gateway.deployed:
                names.append(name)
                break
    settled = {name for names in placed for name in names}
    for name in (name for name in sizes if name not in settled):
        number = _emptiest(sizes, gateways, placed)
        if number is None:
            raise ConfigError(_no_room(sizes, gateways))
        placed[number].append(name)
    return [[name for name in sizes if name in names] for names in placed]


def _emptiest(
    sizes: Mapping[str, int], gateways: Sequence[GatewayCapacity], placed: Sequence[list[str]]
) -> int | None:
    """The index of the gateway with the fewest bytes, among those with room for one more function."""
    loads = [
        (sum(sizes[name] for name in names), number)
        for number, (gateway, names) in enumerate(zip(gateways, placed, strict=True))
        if _has_room(gateway, names)
    ]
    return min(loads)[1] if loads else None


def _has_room(gateway: GatewayCapacity, placed: Collection[str]) -> bool:
    limit = gateway.max_functions
    return limit is None or len(gateway.deployed.union(placed)) < limit


def _no_room(sizes: Mapping[str, int], gateways: Sequence[GatewayCapacity]) -> str:
    # All gateways have a limit here: one without a limit would have room.
    allowed = sum(gateway.max_functions or 0 for gateway in gateways)
    left = allowed - sum(len(gateway.deployed - sizes.keys()) for gateway in gateways)
    fitting = f"`faasmoe partition --max-functions {left}` makes a partition that fits"
    advice = fitting if left > 0 else "remove other functions"
    names = " and ".join(gateway.name for gateway in gateways)
    return (
        f"no room for {len(sizes)} functions: {names} can take {max(left, 0)} (the limit is {allowed} "
        f"functions, including those of others); {advice}"
    )
