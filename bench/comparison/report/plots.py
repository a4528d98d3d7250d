"""The plots of a comparison's report. They need matplotlib."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bench.comparison.measuring.recording import Recording, StrategyResult
from bench.comparison.report.figures import Figures, figures, figures_by_size, mean_memory
from bench.comparison.strategies.deployment import ROLES

COLOURS = dict(zip(ROLES, ("#8c8c8c", "#e6a23c", "#3a7ca5", "#7a4d9f"), strict=True))
GAP_PERCENTILES = np.linspace(0, 99.5, 200)


def plots(recording: Recording) -> Iterator[tuple[str, Figure]]:
    """Names and figures of all plots. The caller closes the figures."""
    found = figures(recording)
    if found:
        yield "comparison", comparison(found)
        yield "latency", latency(found)
        yield "memory", memory(recording, found)
    if len(sizes := figures_by_size(recording)) > 1:
        yield "granularity", granularity(sizes)


def write(recording: Recording, folder: Path) -> list[Path]:
    """Write all plots as PNG files, and return the files."""
    files = []
    for name, figure in plots(recording):
        files.append(folder / f"{name}.png")
        figure.savefig(files[-1], dpi=110)
        plt.close(figure)
    return files


def comparison(found: dict[str, Figures]) -> Figure:
    """Mean memory by role, and CPU time per token, of each strategy."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 0.55 * len(found) + 1.6), layout="constrained")
    names = [one.result.title for one in found.values()]
    start = np.zeros(len(found))
    for role in ROLES:
        sizes = np.array([mean_memory(one.result.moments, role) for one in found.values()]) / 1e9
        if sizes.any():
            left.barh(names, sizes, left=start, color=COLOURS[role], label=role)
            start += sizes
    left.set_xlabel("memory, GB: mean over the replay")
    figure.legend(loc="outside upper center", ncols=len(ROLES), fontsize=9, frameon=False)
    right.barh(names, [1000 * one.cpu_seconds_per_token for one in found.values()], color="#4f9d69")
    right.set_xlabel("processor time per generated token, ms")
    right.set_yticks(range(len(names)), [""] * len(names))
    for axes in (left, right):
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def latency(found: dict[str, Figures]) -> Figure:
    """Cumulative distributions of the time to first token, and of the time between tokens."""
    figure, both = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
    for one in found.values():
        for axes, seconds in zip(both, (one.first_tokens, one.gaps), strict=True):
            if seconds:
                axes.plot(
                    1000 * np.percentile(seconds, GAP_PERCENTILES), GAP_PERCENTILES, label=one.result.title
                )
    for axes, what in zip(both, ("until the first token", "between two tokens"), strict=True):
        axes.set_xscale("log")
        axes.set_xlabel(f"milliseconds {what}")
        axes.set_ylabel("percent of all")
        axes.grid(alpha=0.3)
    both[0].legend(fontsize=8)
    return figure


def memory(recording: Recording, found: dict[str, Figures]) -> Figure:
    """Memory over time for each strategy, above the running requests of each tenant."""
    figure, grid = plt.subplots(
        2 * len(found),
        1,
        figsize=(12, 2.9 * len(found)),
        height_ratios=[2, 1] * len(found),
        sharex=True,
        layout="constrained",
    )
    highest = max(one.bill.peak_bytes for one in found.values()) / 1e9
    for number, one in enumerate(found.values()):
        upper, lower = grid[2 * number], grid[2 * number + 1]
        _stack(upper, one.result)
        upper.set_title(one.result.title, loc="left", fontsize=10)
        upper.set_ylabel("GB")
        upper.set_ylim(0, 1.05 * highest)
        _requests(lower, one.result, recording.run.tenants)
    roles = [role for role in ROLES if any(mean_memory(one.result.moments, role) for one in found.values())]
    patches = [Patch(color=COLOURS[role], label=role) for role in roles]
    figure.legend(handles=patches, loc="outside upper center", ncols=len(ROLES), fontsize=9, frameon=False)
    grid[-1].set_xlabel("seconds")
    return figure


def _stack(axes: Axes, result: StrategyResult) -> None:
    times = [moment.seconds - result.moments[0].seconds for moment in result.moments]
    roles = [role for role in ROLES if any(moment.memory_bytes.get(role) for moment in result.moments)]
    sizes = [[moment.memory_bytes.get(role, 0) / 1e9 for moment in result.moments] for role in roles]
    axes.stackplot(times, sizes, labels=roles, colors=[COLOURS[role] for role in roles])


def _requests(axes: Axes, result: StrategyResult, tenants: Sequence[str]) -> None:
    for row, tenant in enumerate(tenants):
        spans = [
            (outcome.arrival, outcome.ended - outcome.arrival)
            for outcome in result.outcomes
            if outcome.tenant == tenant
        ]
        axes.broken_barh(spans, (row - 0.4, 0.8), color="#444444", alpha=0.35)
    axes.set_yticks(range(len(tenants)), tenants, fontsize=7)
    axes.invert_yaxis()


def granularity(found: Sequence[Figures]) -> Figure:
    """Memory, CPU time, throughput and calls for several function sizes."""
    counts = [one.result.experts_per_function or 0 for one in found]
    curves = {
        "memory, GB": [one.memory / 1e9 for one in found],
        "processor time per token, ms": [1000 * one.cpu_seconds_per_token for one in found],
        "tokens/s": [one.tokens_per_second for one in found],
        "calls per token": [one.calls.invocations / one.tokens for one in found],
    }
    figure, all_axes = plt.subplots(1, len(curves), figsize=(14, 3), layout="constrained")
    for axes, (what, values) in zip(all_axes, curves.items(), strict=True):
        axes.plot(counts, values, marker="o", color="#3a7ca5")
        axes.set_title(what, fontsize=10)
        axes.set_xlabel("experts a function")
        axes.set_xticks(counts)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    return figure
