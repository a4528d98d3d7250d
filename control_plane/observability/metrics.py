"""What `GET /metrics` tells, as Prometheus reads it: vLLM's names, and ours by function, layer and tenant.

See https://docs.vllm.ai/en/latest/design/metrics/ for the names and their meaning.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest

from control_plane.autoscaling.footprint import MemoryUse
from control_plane.engine.core import EngineStatus
from control_plane.faas.statistics import FunctionStatistics
from control_plane.observability.collectors import PREFIX, LiveCollector, ScalingCollector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of what `Metrics.render` gives."""

_FIRST_TOKEN_BUCKETS_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0),
    *(2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_INTER_TOKEN_BUCKETS_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0),
    *(2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_REQUEST_BUCKETS_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)


@dataclass(frozen=True)
class RequestRecord:
    """One request that has ended, however it ended. Times in seconds."""

    tenant: str
    request_id: str
    path: str
    status: int
    """The answer's, or the error's that ended a stream."""
    finish_reasons: tuple[str, ...]
    """One for each choice that came to its end."""
    prompt_tokens: int
    generated_tokens: int
    queue_seconds: float | None
    """None when it never ran; so is the time to the first token when there was none."""
    time_to_first_token: float | None
    inter_token_latencies: Sequence[float]
    seconds: float
    expert_invocations: float
    """Its rows' share of the invocations that it took part in; and of their compute time."""
    expert_seconds: float

    @property
    def succeeded(self) -> bool:
        """Whether it was answered in full."""
        return self.status < 400


class Metrics:
    """Counts requests as they end, and reads at scrape time what engine, invoker and autoscaler hold anyway.

    A scrape calls no function and no gateway.
    """

    def __init__(
        self,
        model_name: str,
        engine_status: Callable[[], EngineStatus],
        functions: Mapping[str, FunctionStatistics],
        memory: Callable[[], MemoryUse],
        scale_actions: Mapping[str, int],
    ) -> None:
        self._registry = CollectorRegistry()
        self._tenant_registry = CollectorRegistry()
        self._requests = _RequestMetrics(self._registry, model_name)
        self._tenants = _TenantMetrics(self._tenant_registry, model_name)
        self._registry.register(LiveCollector(model_name, engine_status, functions))
        self._registry.register(ScalingCollector(model_name, memory, scale_actions))
        ProcessCollector(registry=self._registry)

    def request_finished(self, record: RequestRecord) -> None:
        """Count a request that the engine was given. That it failed, if it did, is told by `failed`."""
        self._requests.finished(record)
        self._tenants.finished(record)

    def refused(self, tenant: str, reason: str) -> None:
        """Count a request of a known tenant's that was turned away: a limit, or a full queue."""
        self._tenants.refused(tenant, reason)

    def failed(self, status: int) -> None:
        """Count an error that was answered, or that ended a stream."""
        self._requests.failed(status)

    def render(self, with_tenants: bool) -> bytes:
        """All metrics as text; those by tenant, which name the tenants, only for who may see them all."""
        return generate_latest(self._registry) + (
            generate_latest(self._tenant_registry) if with_tenants else b""
        )


class _RequestMetrics:
    """What is counted of requests, whoever asks."""

    def __init__(self, registry: CollectorRegistry, model_name: str) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(PREFIX + name, text, ("model_name", *labels), registry=registry)

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            family = Histogram(PREFIX + name, text, ("model_name",), registry=registry, buckets=buckets)
            return family.labels(model_name)

        self._model = model_name
        self._first_token = histogram(
            "time_to_first_token_seconds", "From a request to its first token.", _FIRST_TOKEN_BUCKETS_S
        )
        self._inter_token = histogram(
            "inter_token_latency_seconds", "From a token to the next one.", _INTER_TOKEN_BUCKETS_S
        )
        self._latency = histogram(
            "e2e_request_latency_seconds", "From a request to the end of its answer.", _REQUEST_BUCKETS_S
        )
        self._queue_time = histogram(
            "request_queue_time_seconds", "From a request to its first step.", _REQUEST_BUCKETS_S
        )
        self._prompt_tokens = counter("prompt_tokens", "Prompt tokens of ended requests.").labels(model_name)
        self._generation_tokens = counter("generation_tokens", "Tokens generated for ended requests.").labels(
            model_name
        )
        self._successes = counter("request_success", "Choices answered in full.", "finished_reason")
        self._failures = counter("request_failure", "Errors, by HTTP status.", "status")

    def finished(self, record: RequestRecord) -> None:
        self._prompt_tokens.inc(record.prompt_tokens)
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


class _TenantMetrics:
    """What is counted by tenant."""

    def __init__(self, registry: CollectorRegistry, model_name: str) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            names = ("model_name", "tenant", *labels)
            return Counter(f"{PREFIX}tenant_{name}", text, names, registry=registry)

        self._model = model_name
        self._requests = counter("requests", "Ended requests, failed ones among them.")
        self._prompt_tokens = counter("prompt_tokens", "Prompt tokens of ended requests.")
        self._generation_tokens = counter("generation_tokens", "Tokens generated for ended requests.")
        self._expert_invocations = counter("expert_invocations", "Its rows' share of the invocations.")
        self._expert_seconds = counter("expert_seconds", "Its rows' share of the functions' compute time.")
        self._refusals = counter("refusals", "Requests turned away.", "reason")

    def finished(self, record: RequestRecord) -> None:
        labels = (self._model, record.tenant)
        self._requests.labels(*labels).inc()
        self._prompt_tokens.labels(*labels).inc(record.prompt_tokens)
        self._generation_tokens.labels(*labels).inc(record.generated_tokens)
        self._expert_invocations.labels(*labels).inc(record.expert_invocations)
        self._expert_seconds.labels(*labels).inc(record.expert_seconds)

    def refused(self, tenant: str, reason: str) -> None:
        self._refusals.labels(self._model, tenant, reason).inc()
