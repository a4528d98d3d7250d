"""Tables for people."""

import time
from collections.abc import Iterator, Sequence
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Aligned lines: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    for row in [header, *rows]:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        yield "  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip()


def size(nbytes: float) -> str:
    """Bytes in a unit that keeps them short."""
    for unit in ("B", "KB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} GB"


def status_lines(report: dict[str, Any]) -> Iterator[str]:
    """What `faasmoe status` prints."""
    engine = report["engine"]
    yield f"model {report['model']}, fingerprint {report['fingerprint'][:12]}"
    yield (
        f"control plane: {size(report['memory_bytes'])}, {engine['running']} running, "
        f"{engine['waiting']} waiting, KV cache {engine['kv_cache_used']:.0%} used"
    )
    gateway = report["gateway"]
    yield f"gateway: {gateway['error'] or gateway['url']}"
    yield ""
    header = ["function", "replicas", "resident experts", "memory", "calls", "cold starts", "last call"]
    yield from table(header, [_status_row(function) for function in report["functions"]])


def _status_row(function: dict[str, Any]) -> list[str]:
    age = time.time() - function["last_call"]
    return [
        function["function"],
        f"{function['available_replicas']}/{function['replicas']}"
        if function["deployed"]
        else "not deployed",
        f"{function['resident_experts']}/{function['experts']}",
        size(function["memory_bytes"]),
        str(function["invocations"]),
        str(function["cold_starts"]),
        f"{age:.0f} s ago" if function["last_call"] else "never",
    ]
