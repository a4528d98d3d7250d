"""Tables for people, and the same as objects for programs."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from control_plane.formatting import format_bytes, table
from control_plane.tenancy.tenants import BOUNDS, Tenant
from control_plane.tenancy.usage import Usage


def status_lines(report: dict[str, Any]) -> Iterator[str]:
    """What `faasmoe status` prints."""
    engine = report["engine"]
    yield f"model {report['model']}, fingerprint {report['fingerprint'][:12]}"
    yield (
        f"control plane: {format_bytes(report['memory_bytes'])}, {engine['running']} running, "
        f"{engine['waiting']} waiting, KV cache {engine['kv_cache_used']:.0%} used"
    )
    for gateway in report["gateways"]:
        yield f"gateway: {gateway['error'] or gateway['url']}"
    yield _memory_line(report["memory"])
    yield ""
    header = ["function", "replicas", "resident", "limit", "memory", "calls", "cold starts", "cold experts"]
    header += ["read", "prefetch hits", "wasted", "evicted", "last call"]
    yield from table(header, [_status_row(function) for function in report["functions"]])


def _memory_line(memory: dict[str, Any]) -> str:
    budget = "no budget" if memory["budget"] is None else f"budget {format_bytes(memory['budget'])}"
    return (
        f"memory: {format_bytes(memory['total'])} used of {budget} (least {format_bytes(memory['least'])}): "
        f"{format_bytes(memory['control_plane'])} control plane, "
        f"{format_bytes(memory['overhead'])} functions, "
        f"{format_bytes(memory['experts'])} experts"
    )


def _status_row(function: dict[str, Any]) -> list[str]:
    age = time.time() - function["last_call"]
    return [
        function["function"],
        f"{function['available_replicas']}/{function['replicas']}"
        if function["deployed"]
        else "not deployed",
        f"{function['resident_experts']}/{function['experts']}",
        format_bytes(function["limit_bytes"]) if function["limit_bytes"] else "-",
        format_bytes(function["memory_bytes"]),
        str(function["invocations"]),
        str(function["cold_starts"]),
        str(function["cold_experts"]),
        format_bytes(function["read_bytes"]),
        f"{function['prefetch_hits']}/{function['prefetched_experts']}",
        format_bytes(function["prefetch_wasted_bytes"]),
        _evicted(function),
        f"{age:.0f} s ago" if function["last_call"] else "never",
    ]


def _evicted(function: dict[str, Any]) -> str:
    """How many experts, and why: for room, by a lower limit, for idleness."""
    reasons = {reason: function[f"evicted_for_{reason}"] for reason in ("room", "limit", "idleness")}
    return ", ".join(f"{number} {reason}" for reason, number in reasons.items() if number) or "0"


def tenant_lines(tenants: Sequence[Tenant]) -> Iterator[str]:
    """What `faasmoe tenants list` prints; a dash is no limit."""
    yield from table(
        ["tenant", "weight", *BOUNDS, "operator", "created"], [_tenant_row(tenant) for tenant in tenants]
    )


def tenant_object(tenant: Tenant) -> dict[str, Any]:
    """What `faasmoe tenants show --json` prints; null is no limit."""
    return {
        "name": tenant.name,
        **asdict(tenant.limits),
        "operator": tenant.operator,
        "created": datetime.fromtimestamp(tenant.created, UTC).isoformat(timespec="seconds"),
    }


def usage_lines(usage: Sequence[Usage]) -> Iterator[str]:
    """What `faasmoe usage` prints."""
    header = ["tenant", "requests", "prompt tokens", "generated tokens", "invocations", "expert seconds"]
    yield from table(
        header,
        [
            [
                of.tenant,
                str(of.requests),
                str(of.prompt_tokens),
                str(of.generated_tokens),
                f"{of.expert_invocations:.1f}",
                f"{of.expert_seconds:.3f}",
            ]
            for of in usage
        ],
    )


def _tenant_row(tenant: Tenant) -> list[str]:
    bounds = [getattr(tenant.limits, name) for name in BOUNDS]
    return [
        tenant.name,
        f"{tenant.limits.weight:g}",
        *("-" if bound is None else str(bound) for bound in bounds),
        "yes" if tenant.operator else "no",
        f"{datetime.fromtimestamp(tenant.created):%Y-%m-%d %H:%M}",
    ]
