"""Samples what the processes of a strategy use over time: CPU, memory, and running functions."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import psutil

from bench.support.process_tree import processes, repeated

SAMPLE_SECONDS = 0.5
SAMPLING_SHARE = 0.1
"""Upper bound on the share of time spent sampling: the kernel walks all pages for each sample."""


@dataclass(frozen=True)
class Moment:
    """One sample of all processes, summed by role."""

    seconds: float
    """Time since the first sample."""
    cpu_seconds: Mapping[str, float]
    """CPU time since the start, including that of processes that have ended."""
    memory_bytes: Mapping[str, int]
    """Proportional set sizes: each shared page is divided among the processes that share it."""
    processes: Mapping[str, int]
    """Number of running processes."""
    started: Mapping[str, int]
    """Number of different processes seen so far."""


@dataclass(frozen=True)
class Root:
    """A process that the benchmark has started, and its role."""

    pid: int
    role: str
    children: str
    """Role of the processes that it starts itself."""


@dataclass
class Meter:
    """Takes samples from /proc. Not thread-safe."""

    roots: Sequence[Root]
    _cpu: dict[tuple[int, float], tuple[str, float]] = field(default_factory=dict)
    """Role and last known CPU time of each process, by id and start time, because ids are reused."""
    _began: float = field(default_factory=time.perf_counter)

    def read(self) -> Moment:
        """Take a sample now."""
        memory: dict[str, int] = {}
        running: dict[str, int] = {}
        for root in self.roots:
            for process in processes(root.pid):
                role = root.role if process.pid == root.pid else root.children
                try:
                    with process.oneshot():
                        times = process.cpu_times()
                        self._cpu[process.pid, process.create_time()] = role, times.user + times.system
                    memory[role] = memory.get(role, 0) + process.memory_full_info().pss
                except (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError):
                    continue
                running[role] = running.get(role, 0) + 1
        cpu: dict[str, float] = {}
        for role, seconds in self._cpu.values():
            cpu[role] = cpu.get(role, 0.0) + seconds
        started = dict(Counter(role for role, _ in self._cpu.values()))
        return Moment(time.perf_counter() - self._began, cpu, memory, running, started)


@contextmanager
def metered(roots: Sequence[Root], interval: float = SAMPLE_SECONDS) -> Iterator[list[Moment]]:
    """Sample until the end of the context, with one sample at each end. The yielded list grows meanwhile."""
    meter = Meter(roots)
    moments = [meter.read()]
    try:
        with repeated(lambda: moments.append(meter.read()), interval, interval, SAMPLING_SHARE):
            yield moments
    finally:
        moments.append(meter.read())


@dataclass(frozen=True)
class Bill:
    """The resources that were used in a span of time."""

    seconds: float
    cpu_seconds: float
    gigabyte_seconds: float
    mean_bytes: float
    peak_bytes: int
    function_seconds: float
    """Running time, summed over all functions."""
    cold_starts: int
    """Number of function processes that were started."""


def bill(moments: Sequence[Moment], functions: str = "function") -> Bill:
    """Integrate at least two samples over time, by the trapezoidal rule. `functions` is a role."""
    first, last = moments[0], moments[-1]
    seconds = last.seconds - first.seconds
    byte_seconds = function_seconds = 0.0
    for earlier, later in pairwise(moments):
        span = later.seconds - earlier.seconds
        byte_seconds += span * (_total(earlier.memory_bytes) + _total(later.memory_bytes)) / 2
        awake = earlier.processes.get(functions, 0) + later.processes.get(functions, 0)
        function_seconds += span * awake / 2
    return Bill(
        seconds=seconds,
        cpu_seconds=_total(last.cpu_seconds) - _total(first.cpu_seconds),
        gigabyte_seconds=byte_seconds / 1e9,
        mean_bytes=byte_seconds / seconds,
        peak_bytes=int(max(_total(moment.memory_bytes) for moment in moments)),
        function_seconds=function_seconds,
        cold_starts=last.started.get(functions, 0) - first.started.get(functions, 0),
    )


def _total(by_role: Mapping[str, float]) -> float:
    return sum(by_role.values())
