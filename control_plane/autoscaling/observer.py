"""Keeps what has been seen of each function, and makes of it what the policy decides by."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import exp, inf

from control_plane.autoscaling.footprint import FUNCTION_OVERHEAD_BYTES
from control_plane.autoscaling.policy import FunctionState
from control_plane.autoscaling.shares import Use
from control_plane.faas.statistics import FunctionStatistics
from control_plane.faas.types import FunctionStatus

SMOOTHING_SECONDS = 5.0
"""Over which reads are averaged."""


@dataclass
class _Function:
    """One deployed function. Times are of one monotonic clock, in seconds."""

    replicas: int = 0
    available: bool = False
    listed_calls: int = 0
    invocations: int = 0
    used_at: float = 0.0
    read_bytes: int = 0
    read_at: float = 0.0
    reads: float = 0.0
    """Bytes a second."""
    share: int = 0
    refuses_zero: bool = False
    released: bool = False
    woken: bool = False
    """And not called since."""
    woken_in_vain: bool = False
    scalings: int = 0
    """Under way."""
    scaled_at: float = -inf
    """When the last one came to its end."""


@dataclass
class Observer:
    """What is known of the functions: from the gateway's list, from their answers, and from what was done."""

    expert_nbytes: int
    names: frozenset[str]
    """The partition's functions: a gateway may have others."""
    is_current: bool = True
    """Whether the last list could be believed of all functions."""
    _functions: dict[str, _Function] = field(default_factory=dict)

    @property
    def any_awake(self) -> bool:
        """Whether a function has, or is to have, a replica."""
        return any(function.replicas for function in self._functions.values())

    @property
    def any_asleep(self) -> bool:
        """Whether one that is deployed has none."""
        return not all(function.replicas for function in self._functions.values())

    @property
    def awake(self) -> list[str]:
        """Those that take calls."""
        return [name for name, function in self._functions.items() if function.available]

    def listed(self, statuses: Iterable[FunctionStatus], asked: float, now: float) -> None:
        """What the gateway tells, and when it was asked.

        Of a function that was being scaled since then, it may tell what is no longer so.
        """
        deployed = {status.name: status for status in statuses if status.name in self.names}
        self._functions = {name: self._functions.get(name, _Function()) for name in sorted(deployed)}
        self.is_current = True
        for name, function in self._functions.items():
            status = deployed[name]
            if function.scalings or function.scaled_at >= asked:
                self.is_current = False
                continue
            if status.replicas and (not function.replicas or status.invocation_count > function.listed_calls):
                # Somebody else may call it, too.
                function.used_at = now
            if not status.replicas:
                self._went_to_zero(function)
            function.replicas = status.replicas
            function.available = status.available_replicas > 0
            function.listed_calls = status.invocation_count

    def answered(self, statistics: Mapping[str, FunctionStatistics], now: float, wall: float) -> None:
        """What the functions' answers tell; `wall` is what time.time() says now."""
        for name, function in self._functions.items():
            if counted := statistics.get(name):
                self._count_calls(function, counted, now - max(wall - counted.last_call, 0.0))
                self._count_reads(function, counted.residency.totals.read_bytes, now)

    def waking(self, name: str, now: float) -> None:
        """It is being scaled to one replica, until `scaled`."""
        function = self._of(name)
        function.replicas, function.used_at, function.woken = 1, now, True
        function.scalings += 1

    def awaited(self, now: float) -> None:
        """Requests run: what was woken for them is not idle, though they may not have come to call it."""
        for function in self._functions.values():
            if function.woken:
                function.used_at = now

    def going_to_zero(self, name: str) -> None:
        """It is being scaled to no replica, until `scaled`."""
        function = self._of(name)
        self._went_to_zero(function)
        function.scalings += 1

    def scaled(self, name: str, now: float) -> None:
        """One scaling has come to its end, well or not."""
        function = self._of(name)
        # One that was deployed anew meanwhile has none.
        function.scalings = max(function.scalings - 1, 0)
        function.scaled_at = now

    def refused_zero(self, name: str) -> None:
        """The gateway keeps it running."""
        function = self._of(name)
        function.replicas, function.available, function.refuses_zero = 1, True, True

    def released(self, name: str) -> None:
        """It has dropped its weights."""
        self._of(name).released = True

    def limited(self, name: str, share: int) -> None:
        """It may hold so many experts."""
        self._of(name).share = share

    def states(self, statistics: Mapping[str, FunctionStatistics], now: float) -> dict[str, FunctionState]:
        """For the policy."""
        states = {}
        for name, function in self._functions.items():
            report = statistics[name].residency.last if name in statistics else None
            resident = report.resident_experts if report and function.available else 0
            states[name] = FunctionState(
                replicas=function.replicas,
                available=function.available,
                idle_seconds=now - function.used_at,
                use=Use(function.share, resident, function.reads / self.expert_nbytes),
                overhead_bytes=(report.overhead_bytes if report else 0) or FUNCTION_OVERHEAD_BYTES,
                refuses_zero=function.refuses_zero,
                released=function.released,
                woken_in_vain=function.woken_in_vain,
            )
        return states

    def _of(self, name: str) -> _Function:
        """One that is listed, or was when something was begun with it."""
        return self._functions.setdefault(name, _Function())

    @staticmethod
    def _count_calls(function: _Function, counted: FunctionStatistics, last_call: float) -> None:
        if counted.invocations != function.invocations:
            function.invocations = counted.invocations
            function.used_at = max(function.used_at, last_call)
            function.released = function.woken_in_vain = function.woken = False

    @staticmethod
    def _count_reads(function: _Function, read_bytes: int, now: float) -> None:
        seconds = now - function.read_at
        rate = (read_bytes - function.read_bytes) / seconds if seconds > 0 else function.reads
        function.reads += (rate - function.reads) * (1 - exp(-seconds / SMOOTHING_SECONDS))
        function.read_bytes, function.read_at = read_bytes, now

    @staticmethod
    def _went_to_zero(function: _Function) -> None:
        # One that was not there yet had no chance to be called.
        function.woken_in_vain |= function.woken and function.available
        function.woken = False
        function.replicas, function.available, function.reads = 0, False, 0.0
