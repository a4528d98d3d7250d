"""Decides what to do with the functions: a pure function from observations to a list of actions."""

from collections.abc import Mapping
from dataclasses import dataclass

from control_plane.autoscaling.footprint import BlockSize
from control_plane.autoscaling.shares import Use, divide

LEAST_READS = 0.5
"""Experts per second. A function that reads fewer has all the memory that it needs."""


@dataclass(frozen=True)
class FunctionState:
    """One deployed function, as its gateway and its answers describe it."""

    replicas: int
    """The wanted number, 0 or more."""
    available: bool
    """Whether the function takes calls."""
    idle_seconds: float
    """Seconds since its last invocation, or since it became available."""
    use: Use
    overhead_bytes: int
    refuses_zero: bool = False
    """Whether the gateway has refused to scale it to zero."""
    released: bool = False
    """Whether it has dropped its weights and was not called since."""
    woken_in_vain: bool = False
    """Whether it was not called between its last wake and its return to zero."""


@dataclass(frozen=True)
class Observed:
    """All functions and the memory at one time."""

    functions: Mapping[str, FunctionState]
    """The deployed functions by name."""
    control_plane: int
    """Bytes that the control plane uses or has reserved."""
    prompted: bool
    """Whether a request has arrived since the last decision."""


@dataclass(frozen=True)
class ScalingSettings:
    """The fixed parameters of the policy."""

    budget: int | None
    """The memory for everything together, in bytes; None for no limit."""
    idle_timeout: float
    """A function without calls for this many seconds is to sleep."""
    expert_nbytes: int
    blocks: Mapping[str, BlockSize]


@dataclass(frozen=True)
class Wake:
    """Scale the function from zero to one replica."""

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
    """Set the number of experts that the function may hold in memory."""

    function: str
    experts: int
    grows: bool
    """Whether this is more than before. False for a function whose previous limit is unknown."""


Action = Wake | Sleep | Release | Limit


def decide(observed: Observed, settings: ScalingSettings) -> list[Action]:
    """The actions to take now, in order: wake, sleep, release, then limits, with the shrinking ones first."""
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
    """The functions to wake for a request: all that sleep, except those that the last ones did not use."""
    return [name for name, state in functions.items() if not state.replicas and not state.woken_in_vain]


def expert_pool(observed: Observed, settings: ScalingSettings, awake: Mapping[str, Use]) -> int:
    """The number of experts that the awake functions may hold together.

    A call can wake a sleeping function at any time, so the least that each of them needs is set aside.
    """
    budget = settings.budget or 0
    overhead = sum(state.overhead_bytes for state in observed.functions.values())
    asleep = sum(settings.blocks[name].least for name in observed.functions if name not in awake)
    return (budget - observed.control_plane - overhead) // settings.expert_nbytes - asleep


def _limits(observed: Observed, settings: ScalingSettings, awake: Mapping[str, Use]) -> list[Limit]:
    """The limits that change. A sleeping function gets its least, with which it wakes."""
    # Reads of functions that hardly read are noise, which must not move memory.
    significant = {
        name: use if use.reads >= LEAST_READS else Use(use.share, use.resident, 0.0)
        for name, use in awake.items()
    }
    shares = divide(expert_pool(observed, settings, awake), settings.blocks, significant)
    shares |= {name: settings.blocks[name].least for name in observed.functions if name not in awake}
    return [
        Limit(name, share, share > observed.functions[name].use.share > 0)
        for name, share in shares.items()
        if share != observed.functions[name].use.share
    ]
