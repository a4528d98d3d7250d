"""The control plane's metrics, read by the Prometheus client's own parser."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from control_plane.autoscaling.footprint import MemoryUse
from control_plane.engine.core import EngineStatus
from control_plane.engine.state.stopwatch import StepPart
from control_plane.errors import ConfigError
from control_plane.faas.statistics import FunctionStatistics
from control_plane.observability.definitions import METRICS
from control_plane.observability.metrics import MAX_TENANTS, OTHER_TENANTS, Metrics
from control_plane.observability.request_record import RequestRecord
from control_plane.tenancy.tenants import check_name
from functions.contract.messages import InvocationResult, ResidencyReport

STATUS = EngineStatus(
    running=2,
    waiting=3,
    kv_cache_used=0.25,
    prefix_cache_used=0.5,
    prefix_evictions=6,
    preemptions=4,
    steps=5,
    step_seconds={StepPart.DENSE: 1.5, StepPart.WAIT: 0.25},
)

MEMORY = MemoryUse(budget=None, least=900, control_plane=500, overhead=200, experts=100)
REPORT = ResidencyReport(
    limit_bytes=800,
    resident_experts=6,
    resident_bytes=600,
    read_bytes=1000,
    prefetched_experts=5,
    prefetch_hits=3,
    prefetch_wasted_bytes=200,
    evicted_for_room=4,
    evicted_for_limit=2,
    evicted_for_idleness=1,
)

RECORD = RequestRecord(
    tenant="acme",
    request_id="cmpl-1",
    path="/v1/completions",
    status=200,
    finish_reasons=("stop", "length", "stop"),
    prompt_tokens=7,
    cached_tokens=3,
    generated_tokens=5,
    queue_seconds=0.2,
    time_to_first_token=0.05,
    inter_token_latencies=(0.01, 0.02, 0.02, 0.3),
    seconds=0.9,
    expert_invocations=12.5,
    expert_seconds=0.125,
)

VLLM_TYPES = {
    "num_requests_running": "gauge",
    "num_requests_waiting": "gauge",
    "kv_cache_usage_perc": "gauge",
    "num_preemptions": "counter",
    "prompt_tokens": "counter",
    "generation_tokens": "counter",
    "request_success": "counter",
    "time_to_first_token_seconds": "histogram",
    "inter_token_latency_seconds": "histogram",
    "e2e_request_latency_seconds": "histogram",
    "request_queue_time_seconds": "histogram",
}


@dataclass
class Scraped:
    """A control plane's metrics, with the objects that they are read from."""

    status: EngineStatus = STATUS
    functions: dict[str, FunctionStatistics] = field(default_factory=dict)
    memory: MemoryUse = MEMORY
    actions: dict[str, int] = field(default_factory=dict)
    waiting: int = 3
    """Bookings that wait."""
    spooled: int = 8

    def __post_init__(self) -> None:
        self.metrics = Metrics(
            "demo",
            lambda: self.status,
            self.functions,
            lambda: self.memory,
            self.actions,
            bookings=self,
            kernel="avx2",
        )

    def value(self, name: str, with_tenants: bool = False, **labels: str) -> float | None:
        """The value of the sample with that name and exactly these labels and the model's, or None."""
        wanted = {"model_name": "demo", **labels}
        found = [s.value for s in self.samples(with_tenants) if (s.name, s.labels) == (name, wanted)]
        assert len(found) <= 1
        return found[0] if found else None

    def labels(self, name: str) -> list[dict[str, str]]:
        """The labels of all samples with that name."""
        return [sample.labels for sample in self.samples(with_tenants=True) if sample.name == name]

    def samples(self, with_tenants: bool) -> list[Any]:
        text = self.metrics.render(with_tenants).decode()
        return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def answer(rows: int, seconds: float, instance: str = "one") -> InvocationResult:
    return InvocationResult(np.zeros((rows, 4), np.float32), instance, "127.0.0.1:1", seconds, 0, REPORT)


@pytest.mark.parametrize("name", VLLM_TYPES)
def test_vllm_s_names_exist_before_the_first_request(name: str) -> None:
    text = Scraped().metrics.render(with_tenants=False).decode()
    types = {family.name: family.type for family in text_string_to_metric_families(text)}
    assert types[f"faasmoe:{name}"] == VLLM_TYPES[name]


def test_every_own_sample_names_the_model() -> None:
    scraped = Scraped()
    scraped.functions["experts-0"] = FunctionStatistics()
    scraped.functions["experts-0"].record(3, 10, 20, answer(1, 0.5))
    scraped.metrics.request_finished(RECORD)
    scraped.metrics.refused("acme", "queue_full")
    scraped.metrics.failed(503)
    samples = [s for s in scraped.samples(with_tenants=True) if s.name.startswith("faasmoe:")]
    assert samples
    assert {sample.labels.get("model_name") for sample in samples} == {"demo"}


def test_every_metric_is_documented_and_appears() -> None:
    scraped = Scraped(memory=replace(MEMORY, budget=1000), actions={"wake": 1})
    scraped.functions["experts-0"] = FunctionStatistics()
    text = scraped.metrics.render(with_tenants=True).decode()
    # The client library adds a `_created` sample to each counter and histogram.
    ours = [
        family
        for family in text_string_to_metric_families(text)
        if family.name.startswith("faasmoe:") and not family.name.endswith("_created")
    ]
    assert {family.name: (family.type, family.documentation) for family in ours} == {
        f"faasmoe:{metric.short_name}": (metric.kind, metric.help) for metric in METRICS.values()
    }


def test_metrics_of_the_process() -> None:
    text = Scraped().metrics.render(with_tenants=False).decode()
    values = {s.name: s.value for f in text_string_to_metric_families(text) for s in f.samples}
    for name in ("process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds"):
        assert values[name] > 0


def test_the_engine_is_read_at_each_scrape() -> None:
    scraped = Scraped()
    assert scraped.value("faasmoe:num_requests_running") == 2
    assert scraped.value("faasmoe:num_requests_waiting") == 3
    assert scraped.value("faasmoe:kv_cache_usage_perc") == 0.25
    assert scraped.value("faasmoe:num_preemptions_total") == 4
    assert scraped.value("faasmoe:steps_total") == 5
    assert scraped.value("faasmoe:step_seconds_total", part="dense") == 1.5
    assert scraped.value("faasmoe:step_seconds_total", part="wait") == 0.25
    scraped.status = replace(STATUS, running=0, preemptions=9)
    assert scraped.value("faasmoe:num_requests_running") == 0
    assert scraped.value("faasmoe:num_preemptions_total") == 9


def test_a_request_is_counted() -> None:
    scraped = Scraped()
    scraped.metrics.request_finished(RECORD)
    scraped.metrics.request_finished(replace(RECORD, tenant="beta", finish_reasons=("length",)))
    assert scraped.value("faasmoe:prompt_tokens_total") == 14
    assert scraped.value("faasmoe:generation_tokens_total") == 10
    assert scraped.value("faasmoe:request_success_total", finished_reason="stop") == 2
    assert scraped.value("faasmoe:request_success_total", finished_reason="length") == 2
    assert scraped.labels("faasmoe:request_failure_total") == []


@pytest.mark.parametrize(
    ("name", "bounds", "total"),
    [
        ("time_to_first_token_seconds", {"0.04": 0, "0.06": 1, "2560.0": 1, "+Inf": 1}, 0.05),
        ("inter_token_latency_seconds", {"0.01": 1, "0.025": 3, "0.2": 3, "0.3": 4, "+Inf": 4}, 0.35),
        ("e2e_request_latency_seconds", {"0.8": 0, "1.0": 1, "7680.0": 1, "+Inf": 1}, 0.9),
        ("request_queue_time_seconds", {"0.3": 1, "+Inf": 1}, 0.2),
    ],
)
def test_times_fall_into_buckets_of_seconds(name: str, bounds: Mapping[str, int], total: float) -> None:
    scraped = Scraped()
    scraped.metrics.request_finished(RECORD)
    assert {le: scraped.value(f"faasmoe:{name}_bucket", le=le) for le in bounds} == bounds
    assert scraped.value(f"faasmoe:{name}_sum") == pytest.approx(total)


def test_a_request_that_failed_before_its_first_token_counts_as_failure_without_times() -> None:
    scraped = Scraped()
    failed = replace(
        RECORD, status=503, queue_seconds=None, time_to_first_token=None, inter_token_latencies=()
    )
    scraped.metrics.request_finished(failed)
    scraped.metrics.failed(503)
    for name in VLLM_TYPES:
        if VLLM_TYPES[name] == "histogram":
            assert scraped.value(f"faasmoe:{name}_count") == 0
    assert scraped.labels("faasmoe:request_success_total") == []
    assert scraped.value("faasmoe:request_failure_total", status="503") == 1
    assert scraped.value("faasmoe:prompt_tokens_total") == 7
    assert scraped.value("faasmoe:tenant_requests_total", with_tenants=True, tenant="acme") == 1


def test_functions_are_counted_by_layer_as_they_answer() -> None:
    scraped = Scraped()
    statistics = scraped.functions["experts-0"] = FunctionStatistics()
    statistics.retries += 1
    for layer, rows, seconds in ((0, 3, 0.5), (2, 4, 0.25), (2, 1, 0.25)):
        statistics.record(layer, 100, 50, answer(rows, seconds))
    statistics.record(0, 100, 50, answer(2, 0.5, instance="another"))

    def of_layer(name: str, layer: str) -> float | None:
        return scraped.value(f"faasmoe:function_{name}_total", function="experts-0", layer=layer)

    assert [of_layer("invocations", layer) for layer in "02"] == [2, 2]
    assert [of_layer("rows", layer) for layer in "02"] == [5, 5]
    assert [of_layer("seconds", layer) for layer in "02"] == [1.0, 0.5]
    assert of_layer("invocations", "1") is None
    of_function = {
        "cold_starts_total": 2,
        "retries_total": 1,
        "sent_bytes_total": 400,
        "received_bytes_total": 200,
        "resident_experts": 6,
        "resident_bytes": 600,
        "resident_limit_bytes": 800,
        # Counters include the previous process, too.
        "read_bytes_total": 2000,
        "prefetched_experts_total": 10,
        "prefetch_hits_total": 6,
        "prefetch_wasted_bytes_total": 400,
    }
    found = {name: scraped.value(f"faasmoe:function_{name}", function="experts-0") for name in of_function}
    assert found == of_function
    evicted = {
        reason: scraped.value("faasmoe:function_evicted_experts_total", function="experts-0", reason=reason)
        for reason in ("room", "limit", "idleness")
    }
    assert evicted == {"room": 8, "limit": 4, "idleness": 2}


def test_memory_and_scale_actions_are_read_at_each_scrape() -> None:
    scraped = Scraped()
    assert scraped.value("faasmoe:memory_used_bytes", part="control_plane") == 500
    assert scraped.value("faasmoe:memory_used_bytes", part="overhead") == 200
    assert scraped.value("faasmoe:memory_used_bytes", part="experts") == 100
    assert scraped.labels("faasmoe:memory_budget_bytes") == []
    assert scraped.labels("faasmoe:scale_actions_total") == []
    scraped.memory = replace(MEMORY, budget=1000)
    scraped.actions["wake"] = 12
    assert scraped.value("faasmoe:memory_budget_bytes") == 1000
    assert scraped.value("faasmoe:scale_actions_total", action="wake") == 12


def test_layers_add_up_to_the_function() -> None:
    statistics = FunctionStatistics()
    for number in range(20):
        statistics.record(number % 3, 1, 1, answer(number, number / 4))
    layers = statistics.layers.values()
    assert sum(layer.invocations for layer in layers) == statistics.invocations == 20
    assert sum(layer.rows for layer in layers) == statistics.rows == 190
    assert sum(layer.seconds for layer in layers) == pytest.approx(statistics.seconds)


def test_tenants_are_counted_separately() -> None:
    scraped = Scraped()
    scraped.metrics.request_finished(RECORD)
    scraped.metrics.request_finished(RECORD)
    scraped.metrics.request_finished(replace(RECORD, tenant="beta", expert_invocations=0.0))
    scraped.metrics.refused("acme", "queue_full")
    counted = {
        name: [scraped.value(f"faasmoe:tenant_{name}_total", True, tenant=t) for t in ("acme", "beta")]
        for name in ("requests", "prompt_tokens", "generation_tokens", "expert_invocations", "expert_seconds")
    }
    assert counted == {
        "requests": [2, 1],
        "prompt_tokens": [14, 7],
        "generation_tokens": [10, 5],
        "expert_invocations": [25, 0],
        "expert_seconds": [0.25, 0.125],
    }
    assert scraped.value("faasmoe:tenant_refusals_total", True, tenant="acme", reason="queue_full") == 1


def test_public_metrics_contain_no_tenant_s_name() -> None:
    scraped = Scraped()
    scraped.metrics.request_finished(replace(RECORD, tenant="unmistakable"))
    scraped.metrics.refused("unmistakable", "queue_full")
    assert b"unmistakable" in scraped.metrics.render(with_tenants=True)
    public = scraped.metrics.render(with_tenants=False)
    assert b"unmistakable" not in public
    assert b"tenant" not in public
    assert scraped.metrics.render(with_tenants=True).startswith(b"# HELP faasmoe:")


@pytest.mark.parametrize("name", ['a"} 1\nforged 1', "back\\slash", "zwölf", ""])
def test_any_tenant_s_name_is_escaped_as_a_label(name: str) -> None:
    scraped = Scraped()
    scraped.metrics.request_finished(replace(RECORD, tenant=name))
    assert scraped.labels("faasmoe:tenant_requests_total") == [{"model_name": "demo", "tenant": name}]
    assert scraped.labels("forged") == []


def test_two_control_planes_share_no_metrics() -> None:
    """Neither uses the library's registry for the whole process."""
    before = list(REGISTRY.collect())
    one, other = Scraped(), Scraped()
    one.metrics.request_finished(RECORD)
    assert other.value("faasmoe:prompt_tokens_total") == 0
    assert {family.name for family in REGISTRY.collect()} == {family.name for family in before}


@dataclass
class _Watched(FunctionStatistics):
    """Calls a function whenever one of its numbers is read."""

    on_read: Callable[[], None] = lambda: None

    def __getattribute__(self, name: str) -> Any:
        if name in ("cold_starts", "layers"):
            object.__getattribute__(self, "on_read")()
        return super().__getattribute__(name)


def test_a_function_may_first_answer_during_a_scrape() -> None:
    scraped = Scraped()

    def answered() -> None:
        scraped.functions[f"new-{len(scraped.functions)}"] = FunctionStatistics()

    scraped.functions["experts-0"] = _Watched(on_read=answered)
    scraped.functions["experts-1"] = _Watched(on_read=answered)
    scraped.metrics.render(with_tenants=False)
    assert len(scraped.functions) > 2


def test_a_layer_may_first_be_invoked_during_a_scrape() -> None:
    statistics = FunctionStatistics()
    for layer in range(3):
        statistics.record(layer, 1, 1, answer(1, 0.0))
    seen = []
    for layer in statistics.layers:
        statistics.record(layer + 3, 1, 1, answer(1, 0.0))
        seen.append(layer)
    assert seen == [0, 1, 2]
    assert sorted(statistics.layers) == [0, 1, 2, 3, 4, 5]


def test_the_series_of_tenants_are_bounded() -> None:
    """Clients of an open server make up names; beyond some, the rest share their series."""
    scraped = Scraped()
    for number in range(MAX_TENANTS + 5):
        scraped.metrics.request_finished(replace(RECORD, tenant=f"t{number}"))
        scraped.metrics.refused(f"t{number}", "queue_full")
    assert len(scraped.labels("faasmoe:tenant_requests_total")) == MAX_TENANTS + 1
    assert len(scraped.labels("faasmoe:tenant_refusals_total")) == MAX_TENANTS + 1
    requests = scraped.value("faasmoe:tenant_requests_total", with_tenants=True, tenant=OTHER_TENANTS)
    assert requests == 5
    with pytest.raises(ConfigError):
        check_name(OTHER_TENANTS)


def test_bookings_that_wait_and_were_spooled() -> None:
    scraped = Scraped()
    assert scraped.value("faasmoe:bookings_waiting") == 3
    assert scraped.value("faasmoe:bookings_spooled_total") == 8


def test_the_kernel_of_each_process() -> None:
    scraped = Scraped()
    statistics = scraped.functions["experts-0"] = FunctionStatistics()
    own = {"model_name": "demo", "process": "control_plane", "kernel": "avx2"}
    statistics.record(0, 1, 1, answer(1, 0.1))
    assert scraped.labels("faasmoe:kernel_info") == [own]
    statistics.record(0, 1, 1, replace(answer(1, 0.1), kernel="neon"))
    # Answers without a report do not name it.
    statistics.record(0, 1, 1, answer(1, 0.1))
    named = {"model_name": "demo", "process": "experts-0", "kernel": "neon"}
    assert scraped.labels("faasmoe:kernel_info") == [own, named]
    assert scraped.value("faasmoe:kernel_info", process="experts-0", kernel="neon") == 1
    # A new process may have moved to another machine.
    statistics.record(0, 1, 1, replace(answer(1, 0.1, "two"), kernel="numpy"))
    assert scraped.labels("faasmoe:kernel_info")[1]["kernel"] == "numpy"
