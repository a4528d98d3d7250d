"""GET /metrics agrees with the answers that clients got, and wakes no function."""

from collections.abc import Mapping
from contextlib import closing
from typing import Any

import pytest
from yarl import URL

from tests.support.api.api_server import COMPLETION, IDLE, ApiClient, completion, eventually, holding
from tests.support.models.chat_fixtures import NewTenant
from tests.support.models.tiny_chat_model import EXPERTS, NAME

LAYERS = 3


@pytest.fixture(scope="module")
def operator(new_tenant: NewTenant) -> ApiClient:
    """A client with an operator's key, which may read all series."""
    return new_tenant("operator", operator=True)


@pytest.fixture(scope="module")
def tenant(new_tenant: NewTenant) -> ApiClient:
    return new_tenant("acme", rpm=1000)


def total(api: ApiClient, name: str, **labels: str) -> float:
    """The sum of a metric's series that have these labels."""
    return sum(
        value
        for (found, has), value in api.metrics().items()
        if found == f"faasmoe:{name}" and labels.items() <= has
    )


def test_every_metric_appears(operator: ApiClient, tenant: ApiClient) -> None:
    assert completion(tenant).status == 200
    assert completion(tenant, max_tokens=0).status == 400
    histograms = (
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
    )
    found = {name for name, _ in operator.metrics()}
    for name in (
        *("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "num_preemptions_total"),
        *("prompt_tokens_total", "generation_tokens_total", "request_success_total", "request_failure_total"),
        *(f"{name}_{part}" for name in histograms for part in ("bucket", "sum", "count")),
        *("function_invocations_total", "function_rows_total", "function_seconds_total"),
        *("function_cold_starts_total", "function_retries_total"),
        *("function_resident_experts", "function_resident_bytes"),
        *("tenant_requests_total", "tenant_prompt_tokens_total", "tenant_generation_tokens_total"),
        *("tenant_expert_invocations_total", "tenant_expert_seconds_total"),
    ):
        assert f"faasmoe:{name}" in found, name
    for name, labels in operator.metrics():
        if name.startswith("faasmoe:"):
            assert ("model_name", NAME) in labels


def test_metrics_agree_with_the_client_s_answers(operator: ApiClient, tenant: ApiClient) -> None:
    names = (
        *("prompt_tokens_total", "generation_tokens_total", "request_queue_time_seconds_count"),
        *("time_to_first_token_seconds_count", "e2e_request_latency_seconds_count"),
        *("inter_token_latency_seconds_count", "tenant_requests_total", "tenant_generation_tokens_total"),
    )

    def counts() -> Mapping[str, float]:
        finished = {
            reason: total(operator, "request_success_total", finished_reason=reason)
            for reason in ("stop", "length")
        }
        return {name: total(operator, name) for name in names} | finished

    before = counts()
    text = completion(tenant, max_tokens=30).json["choices"][0]["text"]
    answers = [
        completion(tenant, n=2, max_tokens=7).json,
        completion(tenant, prompt=["the cat", "the dog sat"], max_tokens=5).json,
        completion(tenant, max_tokens=30, stop=text[6:9]).json,
    ]
    # Greedy, because a sampled token may be the one that ends an answer.
    streamed = tenant.stream(
        COMPLETION, prompt="a", max_tokens=6, temperature=0, stream_options={"include_usage": True}
    )
    answers.append(streamed[-1])
    choices = [choice for answer in answers for choice in answer["choices"]]
    usages = [answer["usage"] for answer in answers]
    generated = 30 + sum(usage["completion_tokens"] for usage in usages)
    reasons = ["length", *(choice["finish_reason"] for choice in choices), "length"]
    after = counts()
    assert {name: after[name] - before[name] for name in after} == {
        "prompt_tokens_total": 2 + sum(usage["prompt_tokens"] for usage in usages),
        "generation_tokens_total": generated,
        "tenant_generation_tokens_total": generated,
        "tenant_requests_total": 5,
        "request_queue_time_seconds_count": 5,
        "time_to_first_token_seconds_count": 5,
        "e2e_request_latency_seconds_count": 5,
        "inter_token_latency_seconds_count": generated - len(reasons),
        "stop": reasons.count("stop"),
        "length": reasons.count("length"),
    }
    assert reasons.count("stop") == 1


def test_running_and_waiting_sequences(operator: ApiClient, tenant: ApiClient) -> None:
    eventually(operator.engine, IDLE)
    with holding(tenant, 3):
        assert total(operator, "num_requests_running") == 3
        assert 0 < total(operator, "kv_cache_usage_perc") < 1
    eventually(lambda: total(operator, "num_requests_running"), 0)
    eventually(lambda: total(operator, "kv_cache_usage_perc"), 0)


def test_failures_are_counted(operator: ApiClient, tenant: ApiClient, new_tenant: NewTenant) -> None:
    def failures() -> Mapping[str, float]:
        return {
            status: total(operator, "request_failure_total", status=status)
            for status in ("400", "401", "404", "429", "499")
        }

    limited = new_tenant("limited", tpm=3)
    before = failures()
    assert completion(tenant, temperature=5).status == 400
    assert completion(tenant.with_key(None)).status == 401
    assert completion(tenant, model="gpt-4").status == 404
    assert completion(limited).status == 429
    endless = {"prompt": "a", "max_tokens": 3000, "ignore_eos": True}
    with closing(tenant.send("POST", COMPLETION, endless)):
        eventually(lambda: operator.engine()["running"], 1)
    eventually(failures, {status: number + 1 for status, number in before.items()})
    refused = {"tenant": "limited", "reason": "rate_limit_exceeded"}
    assert total(operator, "tenant_refusals_total", **refused) == 1


def test_functions_are_counted_by_layer(operator: ApiClient, tenant: ApiClient) -> None:
    eventually(operator.engine, IDLE)
    before, invocations = total(operator, "tenant_expert_invocations_total"), operator.invocations()
    assert completion(tenant).status == 200
    report = operator.status()["functions"]
    assert len(report) == len(EXPERTS)
    for function in report:
        mine = {"function": function["function"]}
        assert total(operator, "function_invocations_total", **mine) == function["invocations"]
        assert total(operator, "function_rows_total", **mine) == function["rows"]
        assert total(operator, "function_resident_experts", **mine) == function["resident_experts"]
    layers = {dict(labels).get("layer") for name, labels in operator.metrics() if "_rows_" in name}
    assert layers == {str(layer) for layer in range(LAYERS)}
    booked = total(operator, "tenant_expert_invocations_total") - before
    assert booked == pytest.approx(operator.invocations() - invocations)


def test_a_scrape_wakes_no_function(operator: ApiClient) -> None:
    before: Any = operator.status()
    gateway = ApiClient(URL(before["gateways"][0]["url"]))
    for function in before["functions"]:
        scale = {"serviceName": function["function"], "replicas": 0}
        path = f"/system/scale-function/{function['function']}"
        assert gateway.answer("POST", path, scale).status == 202
    invocations = total(operator, "function_invocations_total")
    for _ in range(3):
        assert operator.metrics()
    assert total(operator, "function_invocations_total") == invocations
    for function in operator.status()["functions"]:
        assert (function["replicas"], function["available_replicas"]) == (0, 0)
