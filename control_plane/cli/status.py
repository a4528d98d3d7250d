"""`faasmoe status`: show what a control plane and its functions are doing."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from control_plane.cli.options import client_key, json_option, key_option, server_option
from control_plane.formatting import format_bytes, table


@click.command()
@json_option
@key_option
@server_option
def status(as_json: bool, key_file: Path | None, server: str) -> None:
    """Show the state of the control plane and its functions.

    The table has replicas, resident experts, memory and calls of each function. With --json, the report has
    more fields than the table. Where keys are required, only an operator's shows the gateways' addresses.

    \b
      faasmoe status --server http://127.0.0.1:8000
    """
    from control_plane.cli.api_client import Client
    from control_plane.faas.gateway_access import parse_url

    key = client_key(key_file)

    async def fetch() -> dict[str, Any]:
        async with Client.connect(parse_url(server), key) as client:
            return await client.status()

    report = asyncio.run(fetch())
    for line in [json.dumps(report, indent=2)] if as_json else status_lines(report):
        click.echo(line)


def status_lines(report: dict[str, Any]) -> Iterator[str]:
    """Format the report of GET /status as text."""
    engine = report["engine"]
    yield f"model {report['model']}, fingerprint {report['fingerprint'][:12]}"
    yield (
        f"control plane: {format_bytes(report['memory_bytes'])}, {report['kernel']} kernel, "
        f"{engine['running']} running, {engine['waiting']} waiting, "
        f"KV cache {engine['kv_cache_used']:.0%} used, {engine['prefix_cache_used']:.0%} kept"
    )
    yield from _slow_kernels(report)
    for gateway in report["gateways"]:
        yield f"gateway: {gateway['error'] or gateway['url'] or 'its address is for operators only'}"
    yield _memory_line(report["memory"])
    yield ""
    header = [
        "function",
        "replicas",
        "kernel",
        "resident",
        "limit",
        "memory",
        "calls",
        "cold starts",
        "cold experts",
    ]
    header += ["read", "prefetch hits", "wasted", "evicted", "last call"]
    yield from table(header, [_function_row(function) for function in report["functions"]])


def _slow_kernels(report: dict[str, Any]) -> Iterator[str]:
    """Warn of processes that compute with NumPy."""
    kernels = {function["function"]: function["kernel"] for function in report["functions"]}
    slow = [name for name, kernel in kernels.items() if kernel == "numpy"]
    if report["kernel"] == "numpy":
        slow.insert(0, "the control plane")
    if slow:
        yield f"warning: slow, since they compute with NumPy, not with code in C: {', '.join(slow)}"


def _memory_line(memory: dict[str, Any]) -> str:
    budget = "no budget" if memory["budget"] is None else f"budget {format_bytes(memory['budget'])}"
    return (
        f"memory: {format_bytes(memory['total'])} used of {budget} (least {format_bytes(memory['least'])}): "
        f"{format_bytes(memory['control_plane'])} control plane, "
        f"{format_bytes(memory['overhead'])} functions, "
        f"{format_bytes(memory['experts'])} experts"
    )


def _function_row(function: dict[str, Any]) -> list[str]:
    replicas = f"{function['available_replicas']}/{function['replicas']}"
    age = time.time() - function["last_call"]
    return [
        function["function"],
        replicas if function["deployed"] else "not deployed",
        function["kernel"] or "-",
        f"{function['resident_experts']}/{function['experts']}",
        format_bytes(function["limit_bytes"]) if function["limit_bytes"] else "-",
        format_bytes(function["memory_bytes"]),
        str(function["invocations"]),
        str(function["cold_starts"]),
        str(function["cold_experts"]),
        format_bytes(function["read_bytes"]),
        f"{function['prefetch_hits']}/{function['prefetched_experts']}",
        format_bytes(function["prefetch_wasted_bytes"]),
        _evictions(function),
        f"{age:.0f} s ago" if function["last_call"] else "never",
    ]


def _evictions(function: dict[str, Any]) -> str:
    """Numbers of evicted experts by reason: to make room, for a lower memory limit, or for idleness."""
    reasons = {reason: function[f"evicted_for_{reason}"] for reason in ("room", "limit", "idleness")}
    return ", ".join(f"{number} {reason}" for reason, number in reasons.items() if number) or "0"
