"""Collects observations of each function into the state that the policy decides by."""

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from math import exp, inf

from control_plane.autoscaling.footprint import FUNCTION_OVERHEAD_BYTES
from control_plane.autoscaling.policy import FunctionState
from control_plane.autoscaling.shares import Use
from control_plane.faas.statistics import FunctionStatistics
from control_plane.faas.types import FunctionStatus

SMOOTHING_SECONDS = 5.0
"""The time constant of the running average of reads."""
ZERO_SECONDS = 10.0
"""A function that its gateway still lists as running this long after a scale to zero has not been stopped."""
COUNT_SECONDS = 60.0
"""The time within which a gateway counts a call: it may learn the number from Prometheus."""
_MOST_UNCOUNTED = 100


@dataclass
class _Function:
    """One deployed function. Times are seconds of a monotonic clock."""

    replicas: int = 0
    available: bool = False
    listed_calls: int = 0
    """The gateway's count of invocations."""
    invocations: int = 0
    """The invoker's count of answers."""
    used_at: float = 0.0
    read_bytes: int = 0
    read_at: float = 0.0
    reads: float = 0.0
    """Bytes read per second, smoothed."""
    share: int = 0
    refuses_zero: bool = False
    released: bool = False
    woken: bool = False
    """Whether it was woken and has not been called since."""
    woken_in_vain: bool = False
    scalings: int = 0
    """The number of scale requests in progress."""
    scaled_at: float = -inf
    """The end of the last scale request."""
    zero_at: float | None = None
    """When the gateway accepted to scale it to zero; None once its effect is known."""
    uncounted: deque[float] = field(default_factory=lambda: deque(maxlen=_MOST_UNCOUNTED))
    """When it was called to keep it awake, for the calls that the gateway has not counted yet."""


@dataclass
class Observer:
    """Combines the gateways' lists, the functions' answers, and the autoscaler's own actions."""

    expert_nbytes: int
    names: frozenset[str]
    """The partition's functions. A gateway may list others, which are ignored."""
    _is_current: bool = True
    """Whether the last list was up to date for all functions."""
    _functions: dict[str, _Function] = field(default_factory=dict)

    @property
    def is_settled(self) -> bool:
        """Whether the last list was up to date, and shows the effect of all scale requests."""
        pending = any(each.scalings or each.zero_at is not None for each in self._functions.values())
        return self._is_current and not pending

    @property
    def any_asleep(self) -> bool:
        """Whether a deployed function has no replica."""
        return not all(function.replicas for function in self._functions.values())

    @property
    def awake(self) -> list[str]:
        """The functions that take calls."""
        return [name for name, function in self._functions.items() if function.available]

    def observe_list(
        self,
        statuses: Iterable[FunctionStatus],
        asked: float,
        now: float,
        unlisted: Collection[str] = frozenset(),
    ) -> None:
        """Take the gateways' list, which was requested at `asked` and arrived at `now`.

        Nothing new is known about the `unlisted` functions. For a function that has been scaled since `asked`
        the list may be out of date, and is ignored.
        """
        deployed = {status.name: status for status in statuses if status.name in self.names}
        kept = self._functions.keys() & unlisted | deployed.keys()
        self._functions = {name: self._functions.get(name, _Function()) for name in sorted(kept)}
        self._is_current = True
        for name, status in deployed.items():
            self._is_current &= self._observe(self._functions[name], status, asked, now)

    def observe_statistics(
        self, statistics: Mapping[str, FunctionStatistics], now: float, wall: float
    ) -> None:
        """Take the statistics of the functions' answers; `wall` is the current time.time()."""
        for name, function in self._functions.items():
            if counted := statistics.get(name):
                self._count_calls(function, counted, now - max(wall - counted.last_call, 0.0))
                self._count_reads(function, counted.residency.totals.read_bytes, now)

    def waking(self, name: str, now: float) -> None:
        """The function is being scaled to one replica, until `scaled`."""
        function = self._of(name)
        function.replicas, function.used_at, function.woken = 1, now, True
        function.scalings += 1
        function.zero_at = None

    def keep_woken(self, now: float) -> None:
        """Requests run: functions that were woken for them are not idle, even if not called yet."""
        for function in self._functions.values():
            if function.woken:
                function.used_at = now

    def going_to_zero(self, name: str) -> None:
        """The function is being scaled to zero, until `scaled`."""
        function = self._of(name)
        self._went_to_zero(function)
        function.scalings += 1

    def scaled(self, name: str, now: float) -> None:
        """A scale request has ended, with or without success."""
        function = self._of(name)
        # The count is 0 already if the function was removed and deployed again meanwhile.
        function.scalings = max(function.scalings - 1, 0)
        function.scaled_at = now

    def accepted_zero(self, name: str, now: float) -> None:
        """The gateway has accepted to scale the function to zero, which later lists may deny."""
        self._of(name).zero_at = now

    def refused_zero(self, name: str) -> None:
        """The gateway has refused to scale the function to zero, so it still runs."""
        function = self._of(name)
        function.replicas, function.available, function.refuses_zero = 1, True, True

    def keeping_awake(self, name: str, now: float) -> bool:
        """The function is to be called only to keep it awake; returns False if it is asleep."""
        function = self._functions.get(name)
        if function is not None:
            if not function.replicas:
                return False
            function.uncounted.append(now)
        return True

    def released(self, name: str) -> None:
        """The function has dropped its weights."""
        self._of(name).released = True

    def limited(self, name: str, share: int) -> None:
        """The function may hold `share` experts."""
        self._of(name).share = share

    def states(self, statistics: Mapping[str, FunctionStatistics], now: float) -> dict[str, FunctionState]:
        """The state of each function, for the policy."""
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
        """The function of that name, which may have been removed from the list since an action began."""
        return self._functions.setdefault(name, _Function())

    def _observe(self, function: _Function, status: FunctionStatus, asked: float, now: float) -> bool:
        """Take one function's part of the list; returns False if it may be out of date, and is ignored."""
        if function.scalings or function.scaled_at >= asked:
            return False
        # A call by another client of the gateway, or the start of a replica.
        used = self._is_called_by_others(function, status.invocation_count, asked)
        if status.replicas and function.zero_at is not None and not used:
            if now - function.zero_at < ZERO_SECONDS:
                return False
            function.refuses_zero = True
        elif status.replicas and (used or not function.replicas):
            function.used_at = now
        if not status.replicas:
            self._went_to_zero(function)
        function.zero_at = None
        function.replicas = status.replicas
        function.available = status.available_replicas > 0
        return True

    @staticmethod
    def _is_called_by_others(function: _Function, calls: int, asked: float) -> bool:
        """Whether the gateway has counted more calls than those that only keep the function awake."""
        new, function.listed_calls = calls - function.listed_calls, calls
        uncounted = function.uncounted
        for _ in range(min(max(new, 0), len(uncounted))):
            uncounted.popleft()
            new -= 1
        # Failed calls may never be counted.
        while uncounted and uncounted[0] < asked - COUNT_SECONDS:
            uncounted.popleft()
        return new > 0

    @staticmethod
    def _count_calls(function: _Function, counted: FunctionStatistics, last_call: float) -> None:
        if counted.invocations != function.invocations:
            function.invocations = counted.invocations
            function.used_at = max(function.used_at, last_call)
            function.released = function.woken_in_vain = function.woken = False
            function.zero_at = None

    @staticmethod
    def _count_reads(function: _Function, read_bytes: int, now: float) -> None:
        seconds = now - function.read_at
        rate = (read_bytes - function.read_bytes) / seconds if seconds > 0 else function.reads
        function.reads += (rate - function.reads) * (1 - exp(-seconds / SMOOTHING_SECONDS))
        function.read_bytes, function.read_at = read_bytes, now

    @staticmethod
    def _went_to_zero(function: _Function) -> None:
        # A function that never became available had no chance to be called.
        function.woken_in_vain |= function.woken and function.available
        function.woken = False
        function.replicas, function.available, function.reads = 0, False, 0.0
