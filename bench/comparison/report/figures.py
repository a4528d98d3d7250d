"""Figures of a report, computed from recorded results, and their text."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bench.comparison.measuring.recording import FunctionCalls, Recording, StrategyResult
from bench.comparison.measuring.resources import Bill, Moment, bill
from bench.comparison.strategies.deployment import FUNCTION
from bench.comparison.strategies.strategies import STRATEGIES

NONE = "-"
"""The text of a missing figure."""


@dataclass(frozen=True)
class Figures:
    """Figures of one strategy's result."""

    result: StrategyResult
    tenants: int
    """Number of tenants in the workload."""

    @cached_property
    def bill(self) -> Bill:
        """Resources during the replay."""
        return bill(self.result.moments, FUNCTION)

    @property
    def idle_bill(self) -> Bill:
        """Resources while no request runs."""
        return bill(self.result.idle, FUNCTION)

    @property
    def calls(self) -> FunctionCalls:
        """Function calls during the replay; all zero for a strategy without functions."""
        return self.result.calls or FunctionCalls(0, 0, 0, 0, 0, 0)

    @cached_property
    def tokens(self) -> int:
        """Number of generated tokens."""
        return sum(len(outcome.tokens) for outcome in self.result.outcomes)

    @property
    def seconds(self) -> float:
        """Time from when the first request was due to the end of the last one."""
        outcomes = self.result.outcomes
        return max(outcome.ended for outcome in outcomes) - min(outcome.arrival for outcome in outcomes)

    @property
    def tokens_per_second(self) -> float:
        """Throughput of all tenants."""
        return self.tokens / self.seconds

    @property
    def cpu_percent(self) -> float:
        """Mean CPU use in percent of one core, the unit of the paper."""
        return 100 * self.bill.cpu_seconds / self.bill.seconds

    @property
    def cpu_seconds_per_token(self) -> float:
        """CPU seconds per generated token."""
        return self.bill.cpu_seconds / self.tokens

    @property
    def memory(self) -> float:
        """Mean over time, in bytes."""
        return self.bill.mean_bytes

    @cached_property
    def first_tokens(self) -> Sequence[float]:
        """Time to first token of each request, in seconds from when it was due."""
        times = (outcome.time_to_first_token for outcome in self.result.outcomes)
        return [time for time in times if time is not None]

    @cached_property
    def gaps(self) -> Sequence[float]:
        """Seconds between consecutive tokens of an answer."""
        return [gap for outcome in self.result.outcomes for gap in outcome.gaps]

    @property
    def failed(self) -> int:
        """Number of failed requests."""
        return sum(bool(outcome.error) for outcome in self.result.outcomes)


def figures(recording: Recording) -> dict[str, Figures]:
    """Figures of all strategies that were measured with the default function size, by key."""
    return {
        result.key: Figures(result, len(recording.run.tenants))
        for result in in_order(recording)
        if not result.problem and result.experts_per_function is None
    }


def figures_by_size(recording: Recording) -> list[Figures]:
    """Figures of FaaSMoE-Shared with each function size that `--experts-per-function` asked for."""
    return [
        Figures(result, len(recording.run.tenants))
        for result in in_order(recording)
        if result.experts_per_function and result.calls and not result.problem
    ]


def in_order(recording: Recording) -> list[StrategyResult]:
    """All results in the order of STRATEGIES, then by function size, memory budget and type of weights."""
    names = list(STRATEGIES)
    return sorted(
        recording.results.values(),
        key=lambda result: (
            names.index(result.strategy),
            result.experts_per_function or 0,
            result.memory_budget or 0,
            result.dtype or "",
        ),
    )


def mean_memory(moments: Sequence[Moment], role: str) -> float:
    """Mean memory of a role over samples, in bytes."""
    return float(np.mean([moment.memory_bytes.get(role, 0) for moment in moments]))


def gigabytes(nbytes: float) -> str:
    """A size in GB, as text."""
    return f"{nbytes / 1e9:.2f} GB"


def milliseconds(seconds: Sequence[float], percent: float) -> str:
    """A percentile in milliseconds, as text."""
    return f"{1000 * float(np.percentile(seconds, percent)):.0f}" if seconds else NONE


def share(value: float, base: float | None) -> str:
    """The ratio of a value to the baseline's, as text."""
    return NONE if base is None else f"{value / base:.3f}"


def role_memory(moments: Sequence[Moment], role: str) -> str:
    """Mean memory of a role over samples, as text."""
    return gigabytes(mean) if (mean := mean_memory(moments, role)) else NONE
