"""The tables of a comparison's report, computed from what was recorded."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bench.comparison.recording import Recording, StrategyResult
from bench.comparison.resources import Bill, Moment, bill
from bench.comparison.strategies import FUNCTION, ROLES, STRATEGIES

PAPER = {
    "baseline": (1126.84, 217.52),
    "local": (428.67, 50.38),
    "faasmoe-shared": (326.40, 72.25),
    "faasmoe-private": (408.49, 90.98),
}
"""CPU in percent of a core and memory in GB of all six tenants, with Qwen1.5-MoE-A2.7B: arXiv 2604.26881."""
BASELINE = "baseline"
NONE = "-"


@dataclass(frozen=True)
class Table:
    """Text in rows and columns, the first of which says what a row is about."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def markdown(self) -> str:
        """As GitHub reads it."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"## {self.title}\n\n{text}\n" + (f"\n{self.note}\n" if self.note else "")


@dataclass(frozen=True)
class Figures:
    """What a strategy's recording amounts to."""

    measured: StrategyResult
    tenants: int

    @cached_property
    def bill(self) -> Bill:
        return bill(self.measured.moments, FUNCTION)

    @cached_property
    def tokens(self) -> int:
        """Generated ones."""
        return sum(len(outcome.tokens) for outcome in self.measured.outcomes)

    @property
    def seconds(self) -> float:
        """From the first request's being due to the last one's end."""
        outcomes = self.measured.outcomes
        return max(outcome.ended for outcome in outcomes) - min(outcome.arrival for outcome in outcomes)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def cpu_percent(self) -> float:
        """Of one core, on average, as the paper has it."""
        return 100 * self.bill.cpu_seconds / self.bill.seconds

    @property
    def cpu_seconds_per_token(self) -> float:
        return self.bill.cpu_seconds / self.tokens

    @property
    def memory(self) -> float:
        """Bytes, on average over time."""
        return self.bill.mean_bytes

    @property
    def idle_bill(self) -> Bill:
        return bill(self.measured.idle, FUNCTION)

    @cached_property
    def first_tokens(self) -> Sequence[float]:
        """Seconds from when each request was due."""
        times = (outcome.time_to_first_token for outcome in self.measured.outcomes)
        return [time for time in times if time is not None]

    @cached_property
    def gaps(self) -> Sequence[float]:
        """Seconds between two tokens of one answer."""
        return [gap for outcome in self.measured.outcomes for gap in outcome.gaps]

    @property
    def failed(self) -> int:
        """Requests."""
        return sum(bool(outcome.error) for outcome in self.measured.outcomes)


def figures(recording: Recording) -> dict[str, Figures]:
    """Of those that were measured with functions of the usual size, by key."""
    return {
        measured.key: Figures(measured, len(recording.run.tenants))
        for measured in in_order(recording)
        if not measured.problem and measured.experts_per_function is None
    }


def in_order(recording: Recording) -> list[StrategyResult]:
    """As strategies are listed, and by the size of functions."""
    names = list(STRATEGIES)
    return sorted(
        recording.measured.values(),
        key=lambda measured: (
            names.index(measured.strategy),
            measured.experts_per_function or 0,
            measured.memory_budget or 0,
        ),
    )


def tables(recording: Recording) -> list[Table]:
    """All that have something to tell."""
    found = figures(recording)
    every = [
        resources(found),
        ratios(found),
        latency(found),
        bills(found),
        memory_by_role(found),
        by_tenant(recording, found),
        sweep(recording),
        missing(recording),
        what_was_run(recording),
    ]
    return [table for table in every if table.rows]


def resources(found: dict[str, Figures]) -> Table:
    """The paper's table in its own units, beside the paper's figures."""
    rows = []
    for name, one in found.items():
        cpu, memory = PAPER.get(name, (None, None))
        rows.append(
            [
                one.measured.title,
                f"{one.cpu_percent:.1f}%",
                f"{one.cpu_percent / one.tenants:.1f}%",
                gigabytes(one.memory),
                gigabytes(one.memory / one.tenants),
                gigabytes(one.bill.peak_bytes),
                NONE if cpu is None else f"{cpu:.1f}%",
                NONE if memory is None else f"{memory:.2f} GB",
            ]
        )
    columns = (
        "strategy",
        "CPU, all",
        "per tenant",
        "memory, all",
        "per tenant",
        "peak",
        "paper: CPU",
        "memory",
    )
    return Table(
        "Processor and memory",
        columns,
        rows,
        "CPU is in percent of one core, memory the sum of proportional set sizes: means over the replay. "
        "The paper served a model of 28.6 GB, on a machine with more cores.",
    )


def ratios(found: dict[str, Figures]) -> Table:
    """What a token costs, also as a share of the baseline's."""
    base = found.get(BASELINE)
    rows = []
    for name, one in found.items():
        paper = PAPER[name][1] / PAPER[BASELINE][1] if name in PAPER else None
        rows.append(
            [
                one.measured.title,
                f"{one.tokens_per_second:.1f}",
                f"{1000 * one.cpu_seconds_per_token:.1f} ms",
                share(one.cpu_seconds_per_token, base.cpu_seconds_per_token if base else None),
                share(one.memory, base.memory if base else None),
                share(one.bill.gigabyte_seconds, base.bill.gigabyte_seconds if base else None),
                NONE if paper is None else f"{paper:.3f}",
            ]
        )
    columns = (
        *("strategy", "tokens/s", "CPU/token", "of baseline's", "memory, of baseline's"),
        *("GB-seconds, of baseline's", "paper: memory, of baseline's"),
    )
    return Table("What a generated token costs", columns, rows)


def latency(found: dict[str, Figures]) -> Table:
    """As clients saw it."""
    rows = []
    for one in found.values():
        outcomes = one.measured.outcomes
        late = max(outcome.sent - outcome.arrival for outcome in outcomes)
        rows.append(
            [
                one.measured.title,
                str(len(outcomes)),
                str(one.failed),
                *(milliseconds(one.first_tokens, percent) for percent in (50, 95, 99)),
                *(milliseconds(one.gaps, percent) for percent in (50, 95, 99)),
                f"{1000 * late:.0f}",
            ]
        )
    columns = (
        *("strategy", "requests", "failed", "first token: p50 ms", "p95", "p99"),
        *("between tokens: p50 ms", "p95", "p99", "client late by, ms"),
    )
    return Table("Latency", columns, rows, "The time to the first token has the time in the queue in it.")


def bills(found: dict[str, Figures]) -> Table:
    """What a platform would count, and what moved."""
    rows = []
    for one in found.values():
        calls = one.measured.calls
        wire = (calls.sent_bytes + calls.received_bytes) / one.tokens if calls else None
        rows.append(
            [
                one.measured.title,
                f"{one.bill.gigabyte_seconds:.0f}",
                f"{one.bill.function_seconds:.0f}",
                str(one.bill.cold_starts),
                NONE if wire is None else f"{wire / 1e3:.1f} kB",
                gigabytes(one.measured.cached_bytes),
                gigabytes(one.idle_bill.mean_bytes),
                f"{one.measured.ready_seconds:.1f} s",
            ]
        )
    columns = (
        *("strategy", "GB-seconds", "function-seconds", "cold starts", "to functions and back, per token"),
        *("page cache of weights", "memory, idle", "until it served"),
    )
    return Table("The bill", columns, rows, "Idle: after the idle timeout, when functions may be at zero.")


def memory_by_role(found: dict[str, Figures]) -> Table:
    """Where memory is, at work and idle: means of samples."""
    seen = {role for one in found.values() for moment in one.measured.moments for role in moment.memory_bytes}
    roles = [role for role in ROLES if role in seen]
    rows = []
    for one in found.values():
        at_work_and_idle = (one.measured.moments, one.measured.idle)
        row = [role_memory(moments, role) for role in roles for moments in at_work_and_idle]
        rows.append([one.measured.title, *row])
    columns = ["strategy", *(text for role in roles for text in (role, f"{role}, idle"))]
    return Table("Where memory is", columns, rows)


def by_tenant(recording: Recording, found: dict[str, Figures]) -> Table:
    """Each tenant's share of what came."""
    rows = []
    for one in found.values():
        for tenant in recording.run.tenants:
            outcomes = [outcome for outcome in one.measured.outcomes if outcome.tenant == tenant]
            of_tenant = Figures(StrategyResult("", "", outcomes=outcomes), 1)
            rows.append(
                [
                    one.measured.title,
                    tenant,
                    str(len(outcomes)),
                    str(of_tenant.tokens),
                    milliseconds(of_tenant.first_tokens, 50),
                    milliseconds(of_tenant.gaps, 50),
                ]
            )
    columns = ("strategy", "tenant", "requests", "tokens", "first token: p50 ms", "between tokens: p50 ms")
    return Table("By tenant", columns, rows)


def sweep(recording: Recording) -> Table:
    """Of the sizes of functions."""
    rows = []
    for measured in in_order(recording):
        if measured.experts_per_function is None or measured.problem or measured.calls is None:
            continue
        one = Figures(measured, len(recording.run.tenants))
        calls = measured.calls
        rows.append(
            [
                f"{measured.experts_per_function}",
                str(measured.functions),
                gigabytes(one.memory),
                gigabytes(one.idle_bill.mean_bytes),
                f"{one.cpu_percent:.1f}%",
                f"{1000 * one.cpu_seconds_per_token:.1f} ms",
                f"{one.tokens_per_second:.1f}",
                milliseconds(one.gaps, 50),
                f"{calls.invocations / one.tokens:.1f}",
                f"{calls.rows / calls.invocations:.1f}",
                f"{(calls.sent_bytes + calls.received_bytes) / one.tokens / 1e3:.1f} kB",
            ]
        )
    columns = (
        *("experts a function", "functions", "memory", "idle", "CPU", "CPU/token", "tokens/s"),
        *("between tokens: p50 ms", "calls/token", "rows a call", "on the wire/token"),
    )
    return Table("Experts per function (FaaSMoE-Shared)", columns, rows)


def missing(recording: Recording) -> Table:
    """What was not measured, and why."""
    rows = [
        [
            measured.title,
            f"{measured.needs_bytes / 1e9:.1f} GB" if measured.needs_bytes else NONE,
            measured.problem,
        ]
        for measured in in_order(recording)
        if measured.problem
    ]
    return Table("Not measured", ("strategy", "memory that it needs", "why not"), rows)


def what_was_run(recording: Recording) -> Table:
    """So that somebody else can run it again."""
    run = recording.run
    rows = [
        ["workload", f"{run.workload}, {run.num_requests} requests of {len(run.tenants)} tenants"],
        ["model", run.model],
        [
            "weights",
            f"{gigabytes(run.dense_bytes)} that every token needs, {gigabytes(run.experts_bytes)} of "
            f"{run.num_experts} experts in each of {run.moe_layers} layers",
        ],
        ["begun", run.began],
        *([name, str(value)] for name, value in run.machine.items()),
        *([name, str(value)] for name, value in run.versions.items()),
        *([name, str(value)] for name, value in run.settings.items() if value not in (None, [], "")),
    ]
    return Table("What was run", ("", ""), rows)


def gigabytes(nbytes: float) -> str:
    """As text."""
    return f"{nbytes / 1e9:.2f} GB"


def milliseconds(seconds: Sequence[float], percent: float) -> str:
    """A percentile, as text."""
    return f"{1000 * float(np.percentile(seconds, percent)):.0f}" if seconds else NONE


def share(value: float, base: float | None) -> str:
    """Of the baseline's, as text."""
    return NONE if base is None else f"{value / base:.3f}"


def role_memory(moments: Sequence[Moment], role: str) -> str:
    """Mean of the samples, as text."""
    values = [moment.memory_bytes.get(role, 0) for moment in moments]
    return gigabytes(float(np.mean(values))) if any(values) else NONE
