"""What is to be done, decided from what is seen: plain data in, a list of actions out."""

from collections.abc import Mapping
from dataclasses import dataclass

from control_plane.autoscaling.footprint import BlockSize
from control_plane.autoscaling.shares import Use, divide

LEAST_READS = 0.5
"""Experts a second: whoever reads less lacks nothing."""


@dataclass(frozen=True)
class FunctionState:
    """One deployed function, as gateway and answers show it."""

    replicas: int
    """Wanted."""
    available: bool
    """Whether it takes calls."""
    idle_seconds: float
    """Since its last invocation, or since it became available."""
    use: Use
    overhead_bytes: int
    refuses_zero: bool = False
    """Whether the gateway has refused to scale it to zero."""
    released: bool = False
    """Whether it was told to drop its weights, and has not been called since."""
    woken_in_vain: bool = False
    """Whether it was woken the last time, and went back to zero without having been called."""


@dataclass(frozen=True)
class Observed:
    """What is seen."""

    functions: Mapping[str, FunctionState]
    """Those that are deployed."""
    control_plane: int
    """Bytes that the control plane uses, or has reserved."""
    prompted: bool
    """Whether a prompt has arrived since the last time."""


@dataclass(frozen=True)
class Settings:
    """What does not change."""

    budget: int | None
    """Bytes, for everything; None is no limit."""
    idle_timeout: float
    """Seconds."""
    expert_nbytes: int
    blocks: Mapping[str, BlockSize]


@dataclass(frozen=True)
class Wake:
    """Have the function started."""

    function: str


@dataclass(frozen=True)
class Sleep:
    """Scale the function to zero."""

    function: str


@dataclass(frozen=True)
class Release:
    """Have the function drop its weights."""

    function: str


@dataclass(frozen=True)
class Limit:
    """Tell the function how many experts it may hold."""

    function: str
    experts: int
    grows: bool
    """False, too, for one of which it is not known how many it holds."""


Action = Wake | Sleep | Release | Limit


def decide(observed: Observed, settings: Settings) -> list[Action]:
    """What to do now, in this order: wake, sleep, release, then limits, those that shrink first."""
    functions = observed.functions
    wakes = to_wake(functions) if observed.prompted else []
    idle = [
        name
        for name, state in functions.items()
        if state.replicas and not observed.prompted and state.idle_seconds >= settings.idle_timeout
    ]
    sleeps = [name for name in idle if not functions[name].refuses_zero]
    releases = [
        name
        for name in idle
        if functions[name].refuses_zero and functions[name].available and not functions[name].released
    ]
    awake = {
        name: state.use
        for name, state in functions.items()
        if (state.replicas or name in wakes) and name not in sleeps
    }
    limits = _limits(observed, settings, awake) if settings.budget is not None else []
    return [
        *map(Wake, wakes),
        *map(Sleep, sleeps),
        *map(Release, releases),
        *sorted(limits, key=lambda limit: limit.grows),
    ]


def to_wake(functions: Mapping[str, FunctionState]) -> list[str]:
    """Those that a prompt will need: all that sleep, but for those that the last ones did without."""
    return [name for name, state in functions.items() if not state.replicas and not state.woken_in_vain]


def expert_pool(observed: Observed, settings: Settings, awake: Mapping[str, Use]) -> int:
    """How many experts the functions that are awake may hold together.

    For those that sleep there is always room to wake with the least that they need: a call can wake them
    at any time.
    """
    budget = settings.budget or 0
    overhead = sum(state.overhead_bytes for state in observed.functions.values())
    asleep = sum(settings.blocks[name].least for name in observed.functions if name not in awake)
    return (budget - observed.control_plane - overhead) // settings.expert_nbytes - asleep


def _limits(observed: Observed, settings: Settings, awake: Mapping[str, Use]) -> list[Limit]:
    """The limits that change. A function that sleeps has its least, to wake with."""
    material = {
        name: use if use.reads >= LEAST_READS else Use(use.share, use.resident, 0.0)
        for name, use in awake.items()
    }
    shares = divide(expert_pool(observed, settings, awake), settings.blocks, material)
    shares |= {name: settings.blocks[name].least for name in observed.functions if name not in awake}
    return [
        Limit(name, share, share > observed.functions[name].use.share > 0)
        for name, share in shares.items()
        if share != observed.functions[name].use.share
    ]
