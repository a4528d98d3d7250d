"""What the processes of a strategy use over time: processor, memory, and how many functions are awake."""

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
"""Of the time, at most: for a sample, the kernel walks all pages."""


@dataclass(frozen=True)
class Moment:
    """One sample of all processes. Those of a role are counted together."""

    seconds: float
    """Since the first sample."""
    cpu_seconds: Mapping[str, float]
    """That each role has used since it began, its processes that have ended among it."""
    memory_bytes: Mapping[str, int]
    """Proportional set sizes: what processes share is divided among them."""
    processes: Mapping[str, int]
    started: Mapping[str, int]
    """How many different ones have been seen so far."""


@dataclass(frozen=True)
class Root:
    """A process that the harness has started, and what it and its children are called."""

    pid: int
    role: str
    children: str
    """Role of the processes that it starts."""


@dataclass
class Meter:
    """Reads /proc. One thread at a time."""

    roots: Sequence[Root]
    _cpu: dict[tuple[int, float], tuple[str, float]] = field(default_factory=dict)
    """By process and start, as a process id can come again: its role, and what was seen last."""
    _began: float = field(default_factory=time.perf_counter)

    def read(self) -> Moment:
        """Now."""
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
    """Samples from now to the end of the context, with one at each end; the list grows while it lasts."""
    meter = Meter(roots)
    moments = [meter.read()]
    try:
        with repeated(lambda: moments.append(meter.read()), interval, interval, SAMPLING_SHARE):
            yield moments
    finally:
        moments.append(meter.read())


@dataclass(frozen=True)
class Bill:
    """What a run has used in all."""

    seconds: float
    cpu_seconds: float
    gigabyte_seconds: float
    mean_bytes: float
    peak_bytes: int
    function_seconds: float
    """Of all functions that were awake."""
    cold_starts: int
    """Functions' processes that were started."""


def bill(moments: Sequence[Moment], functions: str = "function") -> Bill:
    """Of samples in their order, two at least. What lies between two is the mean of both."""
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
