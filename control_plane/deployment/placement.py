"""Decides which of several gateways holds which functions. It asks and changes nothing."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from control_plane.errors import ConfigError


@dataclass(frozen=True)
class Site:
    """A gateway, as far as there is room behind it."""

    name: str
    """For people."""
    deployed: frozenset[str]
    """All functions that are to stay there, also other people's."""
    max_functions: int | None
    """That its edition allows."""


def place(sizes: Mapping[str, int], sites: Sequence[Site]) -> list[list[str]]:
    """For each site its functions, of those with these sizes in bytes, in their order.

    A function stays where it is; the others go where the least is, as long as there is room. Raises
    `ConfigError` when there is not room for all.
    """
    placed: list[list[str]] = [[] for _ in sites]
    for name in sizes:
        for site, names in zip(sites, placed, strict=True):
            if name in site.deployed:
                names.append(name)
                break
    settled = {name for names in placed for name in names}
    for name in (name for name in sizes if name not in settled):
        number = _emptiest(sizes, sites, placed)
        if number is None:
            raise ConfigError(_no_room(sizes, sites))
        placed[number].append(name)
    return [[name for name in sizes if name in names] for names in placed]


def room(site: Site, names: Collection[str]) -> bool:
    """Whether one function more fits beside these, which are placed there."""
    return site.max_functions is None or len(site.deployed.union(names)) < site.max_functions


def _emptiest(sizes: Mapping[str, int], sites: Sequence[Site], placed: Sequence[list[str]]) -> int | None:
    """Of the sites with room, the number of the one with the fewest bytes of the functions, if any."""
    loads = [
        (sum(sizes[name] for name in names), number)
        for number, (site, names) in enumerate(zip(sites, placed, strict=True))
        if room(site, names)
    ]
    return min(loads)[1] if loads else None


def _no_room(sizes: Mapping[str, int], sites: Sequence[Site]) -> str:
    # Where one had no limit, there would be room.
    allowed = sum(site.max_functions or 0 for site in sites)
    left = allowed - sum(len(site.deployed - sizes.keys()) for site in sites)
    hint = f"`faasmoe partition --max-functions {left}` makes one that fits" if left > 0 else "remove others"
    return (
        f"there is no room for {len(sizes)} functions: {' and '.join(site.name for site in sites)} may have "
        f"{allowed}, with others' among them; {hint}"
    )
