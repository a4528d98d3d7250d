"""Whether memory, threads and open files of processes grow: samples, their trend, and its bound."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import median

import psutil

from bench.support.process_tree import processes
from control_plane.formatting import table
from functions.contract.process import FUNCTION_VARIABLE

WARM_UP_SHARE = 1 / 3
"""The share of the time after which processes have allocated what they keep."""
SLOPE_POINTS = 150
SECONDS_PER_HOUR = 3600.0
HEADER = ("process", "of", "first", "middle", "last", "per hour, after warm-up", "bound", "flat")


@dataclass(frozen=True)
class Measure:
    """One kind of amount."""

    name: str
    unit: str
    scale: float
    """The amount of one unit."""
    bound: float
    """The most units that a flat series grows by in an hour."""
    room: float = -math.inf
    """A series that has grown by no more units in all is flat, however fast it grew."""


MEMORY = Measure("memory", " MB", 1e6, bound=10.0)
THREADS = Measure("threads", "", 1.0, bound=1.0, room=4.0)
"""asyncio's pool begins a thread when all others are busy: up to six on two cores, late if they are slow."""
FILES = Measure("open files", "", 1.0, bound=2.0)
MEASURES = (MEMORY, THREADS, FILES)


@dataclass(frozen=True)
class Series:
    """The amounts of one kind that one process had over time, in units."""

    process: str
    measure: Measure
    points: Sequence[tuple[float, float]]
    """Pairs of seconds since the start and amount; at least one."""

    @property
    def slope(self) -> float:
        """Growth per hour after the warm-up: the median of the slopes between any two samples (Theil-Sen).

        Single high samples do not move it.
        """
        warm = self.points[int(len(self.points) * WARM_UP_SHARE) :]
        chosen = warm[:: max(1, len(warm) // SLOPE_POINTS)]
        slopes = [
            (later - earlier) / (end - begin)
            for (begin, earlier), (end, later) in itertools.combinations(chosen, 2)
            if end > begin
        ]
        return median(slopes) * SECONDS_PER_HOUR if slopes else 0.0

    @property
    def flat(self) -> bool:
        """Whether it grows by no more than the bound, or than the room."""
        grown = self.around(1.0) - self.around(0.0)
        return self.slope <= self.measure.bound or grown <= self.measure.room

    def around(self, share: float) -> float:
        """The median of a tenth of the samples, around a share of them: 0 for the first, 1 for the last."""
        count = max(1, len(self.points) // 10)
        begin = round((len(self.points) - count) * share)
        return median(amount for _, amount in self.points[begin : begin + count])

    def row(self) -> list[str]:
        """Its row of the table."""
        digits = 1 if self.measure is MEMORY else 0
        amounts = [f"{self.around(share):.{digits}f}{self.measure.unit}" for share in (0.0, 0.5, 1.0)]
        slope, bound = f"{self.slope:+.1f}{self.measure.unit}", f"{self.measure.bound:g}{self.measure.unit}"
        return [self.process, self.measure.name, *amounts, slope, bound, "yes" if self.flat else "NO"]


@dataclass
class Samples:
    """Collects the amounts of process trees over time."""

    roots: Mapping[str, int]
    """The process ids of servers, by name. Their functions have their own names."""
    _points: dict[tuple[str, Measure], list[tuple[float, float]]] = field(default_factory=dict)

    def add(self, seconds: float) -> None:
        """Sample all processes that run now. Processes of the same name are added up."""
        totals: dict[tuple[str, Measure], float] = {}
        for name, root in self.roots.items():
            for process in processes(root):
                with suppress(psutil.Error):
                    own = process.environ().get(FUNCTION_VARIABLE) or name
                    for measure, amount in _amounts(process).items():
                        totals[own, measure] = totals.get((own, measure), 0.0) + amount / measure.scale
        for key, total in totals.items():
            self._points.setdefault(key, []).append((seconds, total))

    def series(self) -> list[Series]:
        """One series for each process and measure, by name."""
        ordered = sorted(self._points.items(), key=lambda item: (item[0][0], MEASURES.index(item[0][1])))
        return [Series(name, measure, points) for (name, measure), points in ordered]


def lines(series: Sequence[Series]) -> Iterator[str]:
    """The table for people."""
    yield from table(HEADER, [each.row() for each in series])


def _amounts(process: psutil.Process) -> dict[Measure, float]:
    """Memory is the proportional set size, which counts shared pages once over all processes."""
    return {
        MEMORY: process.memory_full_info().pss,
        THREADS: process.num_threads(),
        FILES: process.num_fds(),
    }
