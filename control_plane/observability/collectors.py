"""What engine, functions and autoscaler count anyway, read at scrape time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from control_plane.autoscaling.footprint import MemoryUse
from control_plane.engine.core import EngineStatus
from control_plane.faas.statistics import FunctionStatistics
from functions.contract.messages import ResidencyReport

PREFIX = "faasmoe:"

_Table = tuple[
    tuple[type[CounterMetricFamily] | type[GaugeMetricFamily], str, str, Callable[[Any], float]], ...
]

_OF_ENGINE: _Table = (
    (GaugeMetricFamily, "num_requests_running", "Sequences in the batch.", attrgetter("running")),
    (GaugeMetricFamily, "num_requests_waiting", "Sequences in the queue.", attrgetter("waiting")),
    (GaugeMetricFamily, "kv_cache_usage_perc", "Share of pages in use, 0 to 1.", attrgetter("kv_cache_used")),
    (CounterMetricFamily, "steps", "Batches computed.", attrgetter("steps")),
    (CounterMetricFamily, "num_preemptions", "Sequences sent back to the queue.", attrgetter("preemptions")),
)
_OF_STEPS: _Table = ((CounterMetricFamily, "step_seconds", "The engine's time, by what it did.", float),)
_OF_FUNCTION: _Table = (
    (
        CounterMetricFamily,
        "function_cold_starts",
        "Processes' first answers.",
        attrgetter("cold_starts"),
    ),
    (CounterMetricFamily, "function_retries", "Attempts after an invocation's first.", attrgetter("retries")),
    (CounterMetricFamily, "function_sent_bytes", "Bodies of invocations.", attrgetter("bytes_sent")),
    (CounterMetricFamily, "function_received_bytes", "Bodies of answers.", attrgetter("bytes_received")),
    (CounterMetricFamily, "function_cold_experts", "Experts waited for.", attrgetter("cold_experts")),
)
_OF_RESIDENCY: _Table = (
    (GaugeMetricFamily, "function_resident_experts", "At its last answer.", attrgetter("resident_experts")),
    (GaugeMetricFamily, "function_resident_bytes", "At its last answer.", attrgetter("resident_bytes")),
    (GaugeMetricFamily, "function_resident_limit_bytes", "At its last answer.", attrgetter("limit_bytes")),
    (CounterMetricFamily, "function_read_bytes", "Weights read from disk.", attrgetter("read_bytes")),
    (
        CounterMetricFamily,
        "function_prefetched_experts",
        "Experts read ahead of their call.",
        attrgetter("prefetched_experts"),
    ),
    (CounterMetricFamily, "function_prefetch_hits", "Of those, called.", attrgetter("prefetch_hits")),
    (
        CounterMetricFamily,
        "function_prefetch_wasted_bytes",
        "Read ahead, and dropped without a call.",
        attrgetter("prefetch_wasted_bytes"),
    ),
)
_EVICTED = ("room", "limit", "idleness")
_MEMORY_PARTS = ("control_plane", "overhead", "experts")
_OF_LAYER: _Table = (
    (CounterMetricFamily, "function_invocations", "Answered invocations.", attrgetter("invocations")),
    (CounterMetricFamily, "function_rows", "Rows of answered invocations.", attrgetter("rows")),
    (CounterMetricFamily, "function_seconds", "Compute time in the function.", attrgetter("seconds")),
)


class LiveCollector(Collector):
    """What others count, read when it is asked for."""

    def __init__(
        self,
        model_name: str,
        engine_status: Callable[[], EngineStatus],
        functions: Mapping[str, FunctionStatistics],
    ) -> None:
        self._model = model_name
        self._engine_status = engine_status
        self._functions = functions

    def collect(self) -> Iterator[Metric]:
        engine = self._engine_status()
        yield from self._families(_OF_ENGINE, (), [((), engine)])
        parts = [((part.value,), seconds) for part, seconds in engine.step_seconds.items()]
        yield from self._families(_OF_STEPS, ("part",), parts)
        # A copy: the engine's thread adds functions meanwhile.
        functions = dict(self._functions)
        by_name = [((function,), statistics) for function, statistics in functions.items()]
        yield from self._families(_OF_FUNCTION, ("function",), by_name)
        residencies = [((function,), counted.residency.totals) for function, counted in functions.items()]
        yield from self._families(_OF_RESIDENCY, ("function",), residencies)
        yield self._evicted(residencies)
        by_layer = [
            ((function, str(layer)), counted)
            for function, statistics in functions.items()
            for layer, counted in statistics.layers.items()
        ]
        yield from self._families(_OF_LAYER, ("function", "layer"), by_layer)

    def _evicted(self, residencies: Sequence[tuple[tuple[str, ...], ResidencyReport]]) -> Metric:
        labels = ("model_name", "function", "reason")
        family = CounterMetricFamily(PREFIX + "function_evicted_experts", "Experts dropped.", labels=labels)
        for (function,), report in residencies:
            for reason in _EVICTED:
                family.add_metric((self._model, function, reason), getattr(report, f"evicted_for_{reason}"))
        return family

    def _families(
        self, table: _Table, labels: tuple[str, ...], sources: Sequence[tuple[tuple[str, ...], object]]
    ) -> Iterator[Metric]:
        for kind, name, text, value in table:
            family = kind(PREFIX + name, text, labels=("model_name", *labels))
            for label_values, source in sources:
                family.add_metric((self._model, *label_values), value(source))
            yield family


class ScalingCollector(Collector):
    """What the autoscaler has done, and how much memory everything takes."""

    def __init__(
        self, model_name: str, memory: Callable[[], MemoryUse], scale_actions: Mapping[str, int]
    ) -> None:
        self._model = model_name
        self._memory = memory
        self._actions = scale_actions

    def collect(self) -> Iterator[Metric]:
        actions = CounterMetricFamily(
            PREFIX + "scale_actions", "What functions were told.", labels=("model_name", "action")
        )
        for action, number in dict(self._actions).items():
            actions.add_metric((self._model, action), number)
        yield actions
        memory = self._memory()
        used = GaugeMetricFamily(
            PREFIX + "memory_used_bytes", "By what takes it.", labels=("model_name", "part")
        )
        for part in _MEMORY_PARTS:
            used.add_metric((self._model, part), getattr(memory, part))
        yield used
        if memory.budget is not None:
            budget = GaugeMetricFamily(
                PREFIX + "memory_budget_bytes", "For all parts together.", labels=("model_name",)
            )
            budget.add_metric((self._model,), memory.budget)
            yield budget
