"""Every metric of `GET /metrics`: its name, kind, help text and labels.

Metrics that vLLM has, too, have its names: https://docs.vllm.ai/en/latest/design/metrics/.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

PREFIX = "faasmoe:"
MODEL_LABEL = "model_name"
"""The first label of every metric."""

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
class Definition:
    """A metric's name, kind, labels and help text."""

    kind: Literal["counter", "gauge", "histogram"]
    short_name: str
    """The name without the prefix, and without the `_total` that Prometheus appends to counters."""
    help: str
    labels: tuple[str, ...] = ()
    """The labels after `MODEL_LABEL`."""
    buckets: Sequence[float] = ()
    """The upper bounds of a histogram's buckets."""

    @property
    def name(self) -> str:
        """The name in the output: of a counter's samples, or of a gauge's, or of a histogram as a whole."""
        return PREFIX + self.short_name + ("_total" if self.kind == "counter" else "")

    @property
    def label_names(self) -> tuple[str, ...]:
        """The label of the model, then the metric's own labels."""
        return (MODEL_LABEL, *self.labels)

    def counter(self, registry: CollectorRegistry) -> Counter:
        """Register a counter that is incremented as things happen."""
        return Counter(PREFIX + self.short_name, self.help, self.label_names, registry=registry)

    def histogram(self, registry: CollectorRegistry) -> Histogram:
        """Register a histogram with these buckets."""
        return Histogram(
            PREFIX + self.short_name, self.help, self.label_names, registry=registry, buckets=self.buckets
        )

    def family(self) -> CounterMetricFamily | GaugeMetricFamily:
        """Start a counter or gauge whose values are read at scrape time."""
        kind = CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily
        return kind(PREFIX + self.short_name, self.help, labels=self.label_names)


_FUNCTION = ("function",)
_LAYER = ("function", "layer")
_TENANT = ("tenant",)

_DEFINITIONS = (
    # Requests.
    Definition(
        "histogram",
        "time_to_first_token_seconds",
        "Seconds from a request's arrival to its first token.",
        buckets=_FIRST_TOKEN_BUCKETS_S,
    ),
    Definition(
        "histogram",
        "inter_token_latency_seconds",
        "Seconds between two successive tokens of a choice.",
        buckets=_INTER_TOKEN_BUCKETS_S,
    ),
    Definition(
        "histogram",
        "e2e_request_latency_seconds",
        "Seconds from a request's arrival to the end of its answer.",
        buckets=_REQUEST_BUCKETS_S,
    ),
    Definition(
        "histogram",
        "request_queue_time_seconds",
        "Seconds from a request's submission to its first step.",
        buckets=_REQUEST_BUCKETS_S,
    ),
    Definition("counter", "prompt_tokens", "Prompt tokens of requests that have ended."),
    Definition("counter", "prefix_cache_hits", "Prompt tokens that were there from earlier requests."),
    Definition("counter", "generation_tokens", "Tokens generated for requests that have ended."),
    Definition("counter", "request_success", "Choices answered in full.", ("finished_reason",)),
    Definition("counter", "request_failure", "Errors, by HTTP status.", ("status",)),
    Definition("counter", "ignored_fields", "Requests with a field that has no effect.", ("field",)),
    # The engine.
    Definition("gauge", "num_requests_running", "Sequences that hold memory, paused ones included."),
    Definition("gauge", "num_requests_waiting", "Sequences in the queue."),
    Definition("gauge", "kv_cache_usage_perc", "Share of the KV cache's pages in use, from 0 to 1."),
    Definition("gauge", "prefix_cache_usage_perc", "Share of its pages that hold ended sequences."),
    Definition("counter", "prefix_cache_evictions", "Ended sequences whose pages were needed."),
    Definition("counter", "steps", "Batches computed."),
    Definition("counter", "num_preemptions", "Sequences sent back to the queue."),
    Definition("counter", "step_seconds", "The engine's time in seconds, by what it did.", ("part",)),
    # Functions.
    Definition("counter", "function_cold_starts", "Function processes that have answered.", _FUNCTION),
    Definition("counter", "function_retries", "Attempts after an invocation's first one.", _FUNCTION),
    Definition("counter", "function_sent_bytes", "Bytes of the invocations' bodies.", _FUNCTION),
    Definition("counter", "function_received_bytes", "Bytes of the answers' bodies.", _FUNCTION),
    Definition("counter", "function_cold_experts", "Experts that an invocation waited for.", _FUNCTION),
    Definition("gauge", "function_resident_experts", "Experts in memory at the last answer.", _FUNCTION),
    Definition("gauge", "function_resident_bytes", "Bytes of these experts at the last answer.", _FUNCTION),
    Definition(
        "gauge", "function_resident_limit_bytes", "Limit of these bytes at the last answer.", _FUNCTION
    ),
    Definition("counter", "function_read_bytes", "Bytes of weights read from disk.", _FUNCTION),
    Definition("counter", "function_prefetched_experts", "Experts read before their call.", _FUNCTION),
    Definition("counter", "function_prefetch_hits", "Prefetched experts that were called.", _FUNCTION),
    Definition(
        "counter",
        "function_prefetch_wasted_bytes",
        "Bytes of prefetched experts that were dropped without a call.",
        _FUNCTION,
    ),
    Definition("counter", "function_evicted_experts", "Experts dropped from memory.", (*_FUNCTION, "reason")),
    Definition("counter", "function_invocations", "Answered invocations.", _LAYER),
    Definition("counter", "function_rows", "Rows of answered invocations.", _LAYER),
    Definition("counter", "function_seconds", "Seconds of compute time in the function.", _LAYER),
    Definition(
        "gauge", "kernel_info", "1 for the kernel that each process computes with.", ("process", "kernel")
    ),
    # Memory and scaling.
    Definition("counter", "scale_actions", "Actions of the autoscaler.", ("action",)),
    Definition("gauge", "memory_used_bytes", "Bytes of memory in use, by what uses them.", ("part",)),
    Definition("gauge", "memory_budget_bytes", "Bytes of memory that all parts together may use."),
    # Usage.
    Definition("gauge", "bookings_waiting", "Bookings of usage that the database does not have yet."),
    Definition("counter", "bookings_spooled", "Bookings written to a file, for lack of the database."),
    # Tenants; only for an operator.
    Definition("counter", "tenant_requests", "Requests that have ended, including failed ones.", _TENANT),
    Definition("counter", "tenant_prompt_tokens", "Prompt tokens of requests that have ended.", _TENANT),
    Definition(
        "counter", "tenant_prefix_cache_hits", "Prompt tokens that were there from earlier requests.", _TENANT
    ),
    Definition(
        "counter", "tenant_generation_tokens", "Tokens generated for requests that have ended.", _TENANT
    ),
    Definition("counter", "tenant_expert_invocations", "The tenant's share of the invocations.", _TENANT),
    Definition(
        "counter", "tenant_expert_seconds", "The tenant's share of the functions' compute time.", _TENANT
    ),
    Definition("counter", "tenant_refusals", "Requests refused.", (*_TENANT, "reason")),
)
METRICS = {definition.short_name: definition for definition in _DEFINITIONS}
"""All metrics, by their short names."""
