"""The report of `GET /status`: the engine, and each function as its gateway and its callers see it."""

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from control_plane.autoscaling.footprint import MemoryUse
from control_plane.autoscaling.process_memory import used_bytes
from control_plane.engine.engine import Engine
from control_plane.errors import GatewayError
from control_plane.faas.gateways import Gateways
from control_plane.faas.statistics import FunctionStatistics
from control_plane.faas.types import FunctionStatus
from control_plane.partition.manifest import Manifest

_INTERNAL = ("instance", "layers", "residency")
"""Fields of `FunctionStatistics` that the report leaves out or presents differently."""


@dataclass
class StatusReporter:
    """Combines both views of the functions. Simultaneous calls share one report; none wakes a function."""

    manifest: Manifest
    engine: Engine
    gateways: Gateways
    statistics: Mapping[str, FunctionStatistics]
    memory: Callable[[Collection[str] | None], MemoryUse]
    """Measures memory, given the names of the functions that take calls, or None if unknown."""
    kernel: str
    """The control plane's own kernel."""
    _reporting: asyncio.Task[dict[str, Any]] | None = None

    async def report(self) -> dict[str, Any]:
        """Build the JSON object. If a gateway is unreachable, it says so and has the rest."""
        if self._reporting is None or self._reporting.done():
            self._reporting = asyncio.create_task(self._report())
        return await asyncio.shield(self._reporting)

    async def _report(self) -> dict[str, Any]:
        deployed: dict[str, FunctionStatus] = {}
        known = True
        try:
            deployed = {function.name: function for function in await self.gateways.functions()}
        except GatewayError:
            known = False
        awake = [name for name, function in deployed.items() if function.available_replicas]
        memory = self.memory(awake if known else None)
        return {
            "model": self.manifest.name,
            "fingerprint": self.manifest.fingerprint,
            "gateways": [
                {"url": str(gateway.url), "error": self.gateways.problems.get(str(gateway.url))}
                for gateway in self.gateways.all
            ],
            "engine": asdict(self.engine.status()),
            "kernel": self.kernel,
            "memory_bytes": used_bytes(),
            "memory": {**asdict(memory), "total": memory.total},
            "open": await _open_counts(),
            "functions": [
                self._function(block.function, block.num_experts, deployed.get(block.function))
                for block in self.manifest.blocks
            ],
        }

    def _function(self, name: str, experts: int, deployed: FunctionStatus | None) -> dict[str, Any]:
        known = self.statistics.get(name, FunctionStatistics())
        counted = {name: value for name, value in vars(known).items() if name not in _INTERNAL}
        awake = deployed is not None and deployed.available_replicas > 0
        awake = awake or not self.gateways.has_listed_since(name, known.last_call)
        residency = asdict(known.residency.totals)
        if not awake:
            residency.update(limit_bytes=0, resident_experts=0, resident_bytes=0, overhead_bytes=0)
        # Not every gateway measures memory. The functions' own reports are as old as their last answers.
        measured = deployed.usage.total_memory_bytes if deployed and deployed.usage else 0
        reported = residency["resident_bytes"] + residency["overhead_bytes"]
        return {
            "function": name,
            "gateway": str(self.gateways.of(name).url),
            "deployed": deployed is not None,
            "replicas": deployed.replicas if deployed else 0,
            "available_replicas": deployed.available_replicas if deployed else 0,
            "experts": experts,
            "memory_bytes": measured or reported,
            **counted,
            **residency,
        }


def without_addresses(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report without the gateways' addresses, which are null, and with less about their problems."""
    gateways = [
        {"url": None, "error": each["error"] and "a gateway does not answer as it should"}
        for each in report["gateways"]
    ]
    functions = [{**function, "gateway": None} for function in report["functions"]]
    return {**report, "gateways": gateways, "functions": functions}


async def _open_counts() -> dict[str, int]:
    """Count what this process holds open. Growth under constant load reveals a leak."""
    process = psutil.Process()
    # In a thread, since the system's list of connections may be long.
    connections = await asyncio.to_thread(process.net_connections, "tcp")
    return {
        "tasks": len(asyncio.all_tasks()),
        "connections": sum(connection.status != psutil.CONN_LISTEN for connection in connections),
        "file_descriptors": process.num_fds(),
    }
