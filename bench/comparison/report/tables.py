"""The tables of a comparison's report."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.comparison.measuring.recording import Recording, StrategyResult
from bench.comparison.report.figures import (
    NONE,
    Figures,
    figures,
    figures_by_size,
    gigabytes,
    in_order,
    milliseconds,
    role_memory,
    share,
)
from bench.comparison.strategies.deployment import ROLES

PAPER = {
    "baseline": (1126.84, 217.52),
    "local": (428.67, 50.38),
    "faasmoe-shared": (326.40, 72.25),
    "faasmoe-private": (408.49, 90.98),
}
"""The paper's results for six tenants and Qwen1.5-MoE-A2.7B: CPU in percent of one core, and memory in GB.

Source: arXiv 2604.26881.
"""
BASELINE = "baseline"


@dataclass(frozen=True)
class Table:
    """A table of text. The first column names the subject of each row."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def markdown(self) -> str:
        """The table as GitHub-flavoured Markdown."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"## {self.title}\n\n{text}\n" + (f"\n{self.note}\n" if self.note else "")


def tables(recording: Recording) -> list[Table]:
    """All tables that have rows."""
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
    """CPU and memory, in the units of the paper's table and next to its figures."""
    rows = []
    for name, one in found.items():
        cpu, memory = PAPER.get(name, (None, None))
        rows.append(
            [
                one.result.title,
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
        *("strategy", "CPU, all", "per tenant", "memory, all", "per tenant"),
        *("peak", "paper: CPU", "memory"),
    )
    return Table(
        "Processor and memory",
        columns,
        rows,
        "CPU is in percent of one core, memory the sum of proportional set sizes: means over the replay. "
        "The paper served a model of 28.6 GB, on a machine with more cores.",
    )


def ratios(found: dict[str, Figures]) -> Table:
    """Cost of a generated token, and its ratio to the baseline's."""
    base = found.get(BASELINE)
    rows = []
    for name, one in found.items():
        paper = PAPER[name][1] / PAPER[BASELINE][1] if name in PAPER else None
        rows.append(
            [
                one.result.title,
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
    """Latency as the clients saw it."""
    rows = []
    for one in found.values():
        outcomes = one.result.outcomes
        late = max(outcome.sent - outcome.arrival for outcome in outcomes)
        rows.append(
            [
                one.result.title,
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
    """Resources that a FaaS platform would charge for, and traffic to the functions."""
    rows = []
    for one in found.values():
        calls = one.result.calls
        wire = (calls.sent_bytes + calls.received_bytes) / one.tokens if calls else None
        rows.append(
            [
                one.result.title,
                f"{one.bill.gigabyte_seconds:.0f}",
                f"{one.bill.function_seconds:.0f}",
                str(one.bill.cold_starts),
                NONE if wire is None else f"{wire / 1e3:.1f} kB",
                gigabytes(one.result.cached_bytes),
                gigabytes(one.idle_bill.mean_bytes),
                f"{one.result.ready_seconds:.1f} s",
            ]
        )
    columns = (
        *("strategy", "GB-seconds", "function-seconds", "cold starts", "to functions and back, per token"),
        *("page cache of weights", "memory, idle", "until it served"),
    )
    return Table("The bill", columns, rows, "Idle: after the idle timeout, when functions may be at zero.")


def memory_by_role(found: dict[str, Figures]) -> Table:
    """Mean memory of each role, during the replay and idle."""
    seen = {role for one in found.values() for moment in one.result.moments for role in moment.memory_bytes}
    roles = [role for role in ROLES if role in seen]
    rows = []
    for one in found.values():
        busy_and_idle = (one.result.moments, one.result.idle)
        row = [role_memory(moments, role) for role in roles for moments in busy_and_idle]
        rows.append([one.result.title, *row])
    columns = ["strategy", *(text for role in roles for text in (role, f"{role}, idle"))]
    return Table("Where memory is", columns, rows)


def by_tenant(recording: Recording, found: dict[str, Figures]) -> Table:
    """Requests, tokens and latency of each tenant."""
    rows = []
    for one in found.values():
        for tenant in recording.run.tenants:
            outcomes = [outcome for outcome in one.result.outcomes if outcome.tenant == tenant]
            of_tenant = Figures(StrategyResult("", "", outcomes=outcomes), 1)
            rows.append(
                [
                    one.result.title,
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
    """FaaSMoE-Shared with functions of several sizes."""
    rows = []
    for one in figures_by_size(recording):
        calls = one.calls
        rows.append(
            [
                str(one.result.experts_per_function),
                str(one.result.functions),
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
    """Strategies that were not measured, and why."""
    rows = [
        [
            result.title,
            f"{result.needs_bytes / 1e9:.1f} GB" if result.needs_bytes else NONE,
            result.problem,
        ]
        for result in in_order(recording)
        if result.problem
    ]
    return Table("Not measured", ("strategy", "memory that it needs", "why not"), rows)


def what_was_run(recording: Recording) -> Table:
    """The run's settings, machine and versions, with which it can be repeated."""
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
