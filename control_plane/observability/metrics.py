"""The metrics of `GET /metrics`, in Prometheus's text format."""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from control_plane.autoscaling.footprint import MemoryUse
from control_plane.engine.core import EngineStatus
from control_plane.faas.statistics import FunctionStatistics
from control_plane.observability.collectors import (
    Bookings,
    LedgerCollector,
    LiveCollector,
    ScalingCollector,
)
from control_plane.observability.definitions import METRICS
from control_plane.observability.request_record import RequestRecord

MAX_TENANTS = 1000
"""The most tenants that have series of their own."""
OTHER_TENANTS = "(others)"
"""The label of all other tenants. No tenant can have this name."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The media type of `Metrics.render`."""


class Metrics:
    """Counts requests as they end, and reads the state of engine, invoker and autoscaler at scrape time.

    A scrape calls no function and no gateway.
    """

    def __init__(
        self,
        model_name: str,
        engine_status: Callable[[], EngineStatus],
        functions: Mapping[str, FunctionStatistics],
        memory: Callable[[], MemoryUse],
        scale_actions: Mapping[str, int],
        bookings: Bookings,
        kernel: str,
    ) -> None:
        """`kernel` is the control plane's own."""
        self._registry = CollectorRegistry()
        self._tenant_registry = CollectorRegistry()
        self._requests = _RequestMetrics(self._registry, model_name)
        self._tenants = _TenantMetrics(self._tenant_registry, model_name)
        self._registry.register(LiveCollector(model_name, engine_status, functions, kernel))
        self._registry.register(ScalingCollector(model_name, memory, scale_actions))
        self._registry.register(LedgerCollector(model_name, bookings))
        ProcessCollector(registry=self._registry)

    def request_finished(self, record: RequestRecord) -> None:
        """Count a request that was admitted. Its failure, if any, is counted by `failed`."""
        self._requests.finished(record)
        self._tenants.finished(record)

    def refused(self, tenant: str, reason: str) -> None:
        """Count a request of a known tenant that was refused because of a limit or a full queue."""
        self._tenants.refused(tenant, reason)

    def failed(self, status: int) -> None:
        """Count an error, whether it was the response or ended a stream."""
        self._requests.failed(status)

    def field_ignored(self, field: str) -> None:
        """Count a request with a field that has no effect. Each name is a series, so they must be few."""
        self._requests.field_ignored(field)

    def render(self, with_tenants: bool) -> bytes:
        """Format all metrics as text. Those by tenant reveal names and usage: only for operators."""
        return generate_latest(self._registry) + (
            generate_latest(self._tenant_registry) if with_tenants else b""
        )


class _RequestMetrics:
    """Metrics of the requests of all tenants together."""

    def __init__(self, registry: CollectorRegistry, model_name: str) -> None:
        self._model = model_name
        self._first_token = METRICS["time_to_first_token_seconds"].histogram(registry).labels(model_name)
        self._inter_token = METRICS["inter_token_latency_seconds"].histogram(registry).labels(model_name)
        self._latency = METRICS["e2e_request_latency_seconds"].histogram(registry).labels(model_name)
        self._queue_time = METRICS["request_queue_time_seconds"].histogram(registry).labels(model_name)
        self._prompt_tokens = METRICS["prompt_tokens"].counter(registry).labels(model_name)
        self._cached_tokens = METRICS["prefix_cache_hits"].counter(registry).labels(model_name)
        self._generation_tokens = METRICS["generation_tokens"].counter(registry).labels(model_name)
        self._successes = METRICS["request_success"].counter(registry)
        self._failures = METRICS["request_failure"].counter(registry)
        self._ignored = METRICS["ignored_fields"].counter(registry)

    def finished(self, record: RequestRecord) -> None:
        self._prompt_tokens.inc(record.prompt_tokens)
        self._cached_tokens.inc(record.cached_tokens)
        self._generation_tokens.inc(record.generated_tokens)
        if record.queue_seconds is not None:
            self._queue_time.observe(record.queue_seconds)
        if record.time_to_first_token is not None:
            self._first_token.observe(record.time_to_first_token)
        for latency in record.inter_token_latencies:
            self._inter_token.observe(latency)
        if record.succeeded:
            self._latency.observe(record.seconds)
            for reason in record.finish_reasons:
                self._successes.labels(self._model, reason).inc()

    def failed(self, status: int) -> None:
        self._failures.labels(self._model, str(status)).inc()

    def field_ignored(self, field: str) -> None:
        self._ignored.labels(self._model, field).inc()


class _TenantMetrics:
    """The metrics that have a label for the tenant.

    Clients of an open server make up names of tenants: after `MAX_TENANTS`, the others share their series.
    """

    def __init__(self, registry: CollectorRegistry, model_name: str) -> None:
        self._model = model_name
        self._requests = METRICS["tenant_requests"].counter(registry)
        self._prompt_tokens = METRICS["tenant_prompt_tokens"].counter(registry)
        self._cached_tokens = METRICS["tenant_prefix_cache_hits"].counter(registry)
        self._generation_tokens = METRICS["tenant_generation_tokens"].counter(registry)
        self._expert_invocations = METRICS["tenant_expert_invocations"].counter(registry)
        self._expert_seconds = METRICS["tenant_expert_seconds"].counter(registry)
        self._refusals = METRICS["tenant_refusals"].counter(registry)
        self._known: set[str] = set()

    def finished(self, record: RequestRecord) -> None:
        labels = (self._model, self._label(record.tenant))
        self._requests.labels(*labels).inc()
        self._prompt_tokens.labels(*labels).inc(record.prompt_tokens)
        self._cached_tokens.labels(*labels).inc(record.cached_tokens)
        self._generation_tokens.labels(*labels).inc(record.generated_tokens)
        self._expert_invocations.labels(*labels).inc(record.expert_invocations)
        self._expert_seconds.labels(*labels).inc(record.expert_seconds)

    def refused(self, tenant: str, reason: str) -> None:
        self._refusals.labels(self._model, self._label(tenant), reason).inc()

    def _label(self, tenant: str) -> str:
        if len(self._known) < MAX_TENANTS:
            self._known.add(tenant)
        return tenant if tenant in self._known else OTHER_TENANTS
