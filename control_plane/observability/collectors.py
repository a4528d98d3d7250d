"""Metrics that are read at scrape time from what engine, functions and autoscaler count anyway."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import attrgetter
from typing import Any, Protocol

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from control_plane.autoscaling.footprint import MemoryUse
from control_plane.engine.core import EngineStatus
from control_plane.faas.statistics import FunctionStatistics
from control_plane.observability.definitions import METRICS

_Values = Mapping[str, Callable[[Any], float]]
"""How to read each metric's value from its source, by the metric's short name."""
_Sources = Iterable[tuple[tuple[str, ...], object]]
"""(values of the labels after the model's, the object to read from)."""

_ENGINE: _Values = {
    "num_requests_running": attrgetter("running"),
    "num_requests_waiting": attrgetter("waiting"),
    "kv_cache_usage_perc": attrgetter("kv_cache_used"),
    "prefix_cache_usage_perc": attrgetter("prefix_cache_used"),
    "prefix_cache_evictions": attrgetter("prefix_evictions"),
    "steps": attrgetter("steps"),
    "num_preemptions": attrgetter("preemptions"),
}
_FUNCTION: _Values = {
    "function_cold_starts": attrgetter("cold_starts"),
    "function_retries": attrgetter("retries"),
    "function_sent_bytes": attrgetter("bytes_sent"),
    "function_received_bytes": attrgetter("bytes_received"),
    "function_cold_experts": attrgetter("cold_experts"),
}
_RESIDENCY: _Values = {
    "function_resident_experts": attrgetter("resident_experts"),
    "function_resident_bytes": attrgetter("resident_bytes"),
    "function_resident_limit_bytes": attrgetter("limit_bytes"),
    "function_read_bytes": attrgetter("read_bytes"),
    "function_prefetched_experts": attrgetter("prefetched_experts"),
    "function_prefetch_hits": attrgetter("prefetch_hits"),
    "function_prefetch_wasted_bytes": attrgetter("prefetch_wasted_bytes"),
}
_LAYER: _Values = {
    "function_invocations": attrgetter("invocations"),
    "function_rows": attrgetter("rows"),
    "function_seconds": attrgetter("seconds"),
}
_LEDGER: _Values = {
    "bookings_waiting": attrgetter("waiting"),
    "bookings_spooled": attrgetter("spooled"),
}
_EVICTION_REASONS = ("room", "limit", "idleness")
_MEMORY_PARTS = ("control_plane", "overhead", "experts")


class LiveCollector(Collector):
    """Reads the metrics of the engine and of the functions."""

    def __init__(
        self,
        model_name: str,
        engine_status: Callable[[], EngineStatus],
        functions: Mapping[str, FunctionStatistics],
        kernel: str,
    ) -> None:
        """`kernel` is the control plane's own."""
        self._model = model_name
        self._engine_status = engine_status
        self._functions = functions
        self._kernel = kernel

    def collect(self) -> Iterator[Metric]:
        engine = self._engine_status()
        yield from _families(self._model, _ENGINE, [((), engine)])
        yield _family(
            self._model, "step_seconds", {(part.value,): s for part, s in engine.step_seconds.items()}
        )
        # A copy, since the engine's thread may add functions during the scrape.
        functions = dict(self._functions)
        yield from _families(
            self._model, _FUNCTION, [((name,), counts) for name, counts in functions.items()]
        )
        kernels = {name: counts.kernel for name, counts in functions.items() if counts.kernel}
        in_use = [("control_plane", self._kernel), *kernels.items()]
        yield _family(self._model, "kernel_info", dict.fromkeys(in_use, 1))
        totals = [((name,), counts.residency.totals) for name, counts in functions.items()]
        yield from _families(self._model, _RESIDENCY, totals)
        evicted = {
            (name, reason): getattr(report, f"evicted_for_{reason}")
            for (name,), report in totals
            for reason in _EVICTION_REASONS
        }
        yield _family(self._model, "function_evicted_experts", evicted)
        layers = [
            ((name, str(layer)), counts_of_layer)
            for name, counts in functions.items()
            for layer, counts_of_layer in counts.layers.items()
        ]
        yield from _families(self._model, _LAYER, layers)


class Bookings(Protocol):
    """Counts of bookings, which `Ledger` has."""

    @property
    def waiting(self) -> int:
        """Bookings that the database does not have yet."""

    @property
    def spooled(self) -> int:
        """Bookings that were written to a file."""


class LedgerCollector(Collector):
    """Reads the metrics of usage."""

    def __init__(self, model_name: str, bookings: Bookings) -> None:
        self._model = model_name
        self._bookings = bookings

    def collect(self) -> Iterator[Metric]:
        yield from _families(self._model, _LEDGER, [((), self._bookings)])


class ScalingCollector(Collector):
    """Reads the metrics of the autoscaler and of memory."""

    def __init__(
        self, model_name: str, memory: Callable[[], MemoryUse], scale_actions: Mapping[str, int]
    ) -> None:
        self._model = model_name
        self._memory = memory
        self._actions = scale_actions

    def collect(self) -> Iterator[Metric]:
        actions = {(action,): number for action, number in dict(self._actions).items()}
        yield _family(self._model, "scale_actions", actions)
        memory = self._memory()
        used = {(part,): getattr(memory, part) for part in _MEMORY_PARTS}
        yield _family(self._model, "memory_used_bytes", used)
        if memory.budget is not None:
            yield _family(self._model, "memory_budget_bytes", {(): memory.budget})


def _families(model: str, values: _Values, sources: _Sources) -> Iterator[Metric]:
    """Read each metric of a table from all sources."""
    sources = list(sources)
    for name, value in values.items():
        yield _family(model, name, {labels: value(source) for labels, source in sources})


def _family(model: str, name: str, samples: Mapping[Any, float]) -> Metric:
    """Build one metric from its values, keyed by tuples of labels."""
    family = METRICS[name].family()
    for labels, value in samples.items():
        family.add_metric((model, *labels), value)
    return family
