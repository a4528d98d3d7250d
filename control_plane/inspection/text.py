"""A report on a model as text."""

from collections.abc import Iterator

from control_plane.formatting import format_bytes, table
from control_plane.inspection.report import Report, Size

_WAYS = {
    "program": "layer programs in C",
    "ragged": "transformers' modules, all sequences together",
    "lockstep": "transformers' modules, one sequence after the other",
}


def lines(report: Report) -> Iterator[str]:
    """The report for people. What is estimated says so."""
    of = f" of {report.layers}" if report.layers else ""
    yield f"{report.name}: {report.family}"
    yield (
        f"{report.moe_layers}{of} layers have experts: {report.experts} each, of which a token uses "
        f"{report.experts_per_token}"
    )
    types = ", ".join(f"{name} {format_bytes(size)}" for name, size in report.weights.nbytes.items())
    yield f"weights: {report.weights.format} ({types})"
    yield f"served by {_WAYS[report.way]} ({report.way}), with {report.functions} functions by default"
    context = f"{report.context} tokens" if report.context else "not stated in config.json"
    state = ", and each sequence has a state besides" if report.has_states else ""
    yield f"context: {context}; each takes {format_bytes(report.kv_bytes_per_token)} of the KV cache{state}"
    yield ""
    yield "partition, by type of weights:"
    yield from table(
        ["--dtype", "--dense-dtype", "experts in", "dense part", "one expert", "all experts", "together"],
        [_size_row(size) for size in report.sizes],
    )
    yield ""
    yield "experts of each layer in memory, by memory budget (estimate):"
    yield from _by_budget(
        report,
        [[_resident(report, size, each) for each in range(len(report.budgets))] for size in report.sizes],
    )
    yield ""
    yield "tokens/s of one sequence that these bandwidths allow (estimate):"
    yield from _by_budget(
        report, [[_speed(size, each) for each in range(len(report.budgets))] for size in report.sizes]
    )
    yield from _bounds(report)


def _size_row(size: Size) -> list[str]:
    amounts = (size.dense, size.expert, size.experts, size.together)
    return [size.dtype, size.dense_dtype, "/".join(size.types), *map(format_bytes, amounts)]


def _by_budget(report: Report, cells: list[list[str]]) -> Iterator[str]:
    *budgets, machine = report.budgets
    header = [
        "--dtype",
        "--dense-dtype",
        *map(format_bytes, budgets),
        f"this machine, {format_bytes(machine)}",
    ]
    return table(
        header, [[size.dtype, size.dense_dtype, *row] for size, row in zip(report.sizes, cells, strict=True)]
    )


def _resident(report: Report, size: Size, budget: int) -> str:
    resident = size.fits[budget].resident
    if resident is None:
        return "too little"
    return "all" if resident == report.experts else str(resident) if resident else "<1"


def _speed(size: Size, budget: int) -> str:
    speed = size.fits[budget].tokens_per_second
    return "-" if speed is None else f"{speed:.0f}" if speed >= 100 else f"{speed:.3g}"


def _bounds(report: Report) -> Iterator[str]:
    machine = report.machine
    yield (
        "A token reads the dense part without embeddings, and the experts that it uses. Memory, measured "
        f"here: {machine.memory_bandwidth / 1e9:.1f} GB/s."
    )
    if machine.disk_bandwidth is None:
        yield (
            "Where not all experts fit, the disk bounds the speed. It was not measured: the weights are not "
            "here."
        )
    else:
        yield (
            f"Other experts come from disk, measured here: {machine.disk_bandwidth / 1e9:.2f} GB/s; as often "
            "as if all were used alike."
        )
