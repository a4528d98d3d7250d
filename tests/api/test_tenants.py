"""Tenants at the API: authentication and limits."""

from dataclasses import replace
from pathlib import Path

import pytest

from control_plane.config import ServeConfig
from control_plane.tenancy.storage.store import TenantStore
from control_plane.tenancy.tenants import Limits
from control_plane.up import running
from tests.support.api.api_server import (
    ASK,
    ASK_TOKENS,
    COMPLETION,
    ApiClient,
    add_tenant,
    completion,
    eventually,
    holding,
    in_thread,
    serving,
    usage_of,
)
from tests.support.models.chat_fixtures import NewTenant
from tests.support.models.tiny_chat_model import NAME

pytestmark = pytest.mark.slow


def test_the_request_has_the_expected_number_of_tokens(new_tenant: NewTenant) -> None:
    assert new_tenant("counter").post(COMPLETION, **ASK)["usage"]["total_tokens"] == ASK_TOKENS


@pytest.mark.parametrize("key", [None, "fm-somebody-else-s-key", "\u00e9"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", COMPLETION),
        ("POST", "/v1/chat/completions"),
        ("POST", "/tokenize"),
        ("POST", "/detokenize"),
        ("GET", "/v1/models"),
        ("GET", f"/v1/models/{NAME}"),
    ],
)
def test_requests_without_a_valid_key_are_refused(
    server: ApiClient, method: str, path: str, key: str | None
) -> None:
    answer = server.with_key(key).answer(method, path, ASK if method == "POST" else None)
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert (answer.error["type"], answer.error["code"]) == ("invalid_request_error", "invalid_api_key")


@pytest.mark.parametrize("authorization", ["{key}", "Basic {key}", "Bearer", "Bearer {key}x"])
def test_a_key_comes_as_a_bearer_token(server: ApiClient, database: Path, authorization: str) -> None:
    key = add_tenant(database, f"form-{len(authorization)}")
    assert server.with_key(key).ask("GET", "/v1/models")[0] == 200
    header = authorization.format(key=key)
    assert server.answer("GET", "/v1/models", Authorization=header).status == 401


def test_a_removed_tenant_is_refused(new_tenant: NewTenant, database: Path) -> None:
    api = new_tenant("leaver")
    with TenantStore.open(database) as store, holding(api):
        assert completion(api).status == 200
        store.remove("leaver")
        assert completion(api).status == 401
    # A request that was running when the tenant was removed is booked, too.
    eventually(lambda: usage_of(database, "leaver").requests, 2)


def test_a_replaced_key_is_refused(new_tenant: NewTenant, database: Path) -> None:
    api = new_tenant("renewer")
    assert completion(api).status == 200
    with TenantStore.open(database) as store:
        renewed = api.with_key(store.rotate_key("renewer"))
    assert [completion(client).status for client in (api, renewed)] == [401, 200]
    assert usage_of(database, "renewer").requests == 2


def test_requests_per_minute(new_tenant: NewTenant, database: Path) -> None:
    api, other = new_tenant("hasty", rpm=2), new_tenant("calm", rpm=2)
    answers = [completion(api) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["1", "0", "0"]
    refused = answers[-1]
    assert (refused.error["type"], refused.error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert "2 requests per minute" in refused.error["message"]
    assert 25 <= int(refused.headers["Retry-After"]) <= 30
    assert refused.headers["x-should-retry"] is None
    assert completion(other).status == 200
    assert usage_of(database, "hasty").requests == 2
    # A raised limit applies at once.
    with TenantStore.open(database) as store:
        store.update("hasty", Limits(rpm=100), operator=False)
    assert completion(api).headers["x-ratelimit-limit-requests"] == "100"


def test_tokens_per_minute(new_tenant: NewTenant) -> None:
    limit = 2 * ASK_TOKENS
    api = new_tenant("talker", tpm=limit)
    answers = [completion(api) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    refused = answers[-1]
    assert f"{limit} tokens per minute" in refused.error["message"]
    assert 25 <= int(refused.headers["Retry-After"]) <= 30
    assert int(refused.headers["x-ratelimit-remaining-tokens"]) < ASK_TOKENS
    impossible = completion(api, max_tokens=limit)
    assert (impossible.status, impossible.headers["x-should-retry"]) == (429, "false")
    assert impossible.headers["Retry-After"] is None


def test_an_answer_that_stops_early_is_charged_its_real_length(new_tenant: NewTenant) -> None:
    api = new_tenant("early", tpm=1000)
    text = completion(api, max_tokens=30).json["choices"][0]["text"]
    answer = completion(api, max_tokens=500, stop=text[5:8])
    assert answer.json["usage"]["completion_tokens"] < 30
    assert int(completion(api).headers["x-ratelimit-remaining-tokens"]) > 900


def test_concurrent_requests(new_tenant: NewTenant) -> None:
    api, other = new_tenant("parallel", max_concurrency=2), new_tenant("serial", max_concurrency=1)
    with holding(api), holding(api):
        refused = completion(api)
        assert (refused.status, refused.headers["Retry-After"]) == (429, "1")
        assert "2 requests at once" in refused.error["message"]
        assert completion(other).status == 200
    eventually(lambda: completion(api).status, 200)


@pytest.mark.parametrize("stream", [False, True])
def test_limits_of_length(new_tenant: NewTenant, database: Path, stream: bool) -> None:
    tenant = f"brief-{stream}"
    api = new_tenant(tenant, max_context=12, max_output=8)
    # A limit beyond the tenant's is cut: to its output, or to the room in its context.
    for prompt_tokens, room in ((2, 8), (5, 7), (11, 1)):
        prompt = {"prompt": [5] * prompt_tokens, "max_tokens": 9, "ignore_eos": True}
        before = usage_of(database, tenant).generated_tokens
        answer = completion(api, **prompt, stream=stream)
        assert (answer.status, answer.body.count(b'"length"')) == (200, 1)
        assert usage_of(database, tenant).generated_tokens - before == room
    far = completion(api, prompt=[5] * 12, max_tokens=1, stream=stream)
    assert (far.status, far.error["code"], far.error["param"]) == (400, "context_length_exceeded", "prompt")
    assert "context length is 12 tokens. However, your prompt resulted in 12 tokens" in far.error["message"]
    assert completion(api, prompt=[5] * 12, max_tokens=0, echo=True, stream=stream).status == 200
    chat = {"messages": [{"role": "user", "content": "a"}], "ignore_eos": True}
    long = api.answer("POST", "/v1/chat/completions", chat).error
    assert (long["code"], long["param"]) == ("context_length_exceeded", "messages")


def test_a_limit_that_is_cut_is_charged_like_none(new_tenant: NewTenant) -> None:
    """Agents ask for 32,000 tokens; a tenant whose limit a minute is lower would never be served."""
    api = new_tenant("agent", tpm=1000)
    assert completion(api, max_tokens=32_000, stop=["e"]).status == 200


def test_an_answer_without_a_limit_ends_at_the_tenant_s(new_tenant: NewTenant) -> None:
    api = new_tenant("open-ended", max_output=8)
    chat = {"messages": [{"role": "user", "content": "a"}], "ignore_eos": True, "temperature": 0}
    answer = api.post("/v1/chat/completions", **chat)
    assert answer["usage"]["completion_tokens"] == 8
    assert answer["choices"][0]["finish_reason"] == "length"


def test_queues_are_bounded(chat_partition: Path, tmp_path: Path) -> None:
    database = tmp_path / "faasmoe.db"
    keys = [add_tenant(database, f"queue-{number}") for number in range(3)]
    with serving(chat_partition, database, max_queued=10, max_queued_per_tenant=8) as server:
        one, two, three = map(server.with_key, keys)
        never = completion(one, n=9)
        assert (never.status, never.error["code"]) == (429, "queue_full")
        assert never.headers["x-should-retry"] == "false"
        with holding(one, 8):
            full = completion(one)
            assert (full.status, full.error["code"], full.headers["Retry-After"]) == (429, "queue_full", "1")
            assert completion(two).status == 200
            with holding(two, 2):
                overloaded = completion(three, n=4)
                assert (overloaded.status, overloaded.error["code"]) == (503, "overloaded")
                assert (overloaded.error["type"], overloaded.headers["Retry-After"]) == ("server_error", "1")
                assert completion(three).status == 200, "each tenant has a place of its own"
        eventually(lambda: completion(three).status, 200)


def test_tenants_of_the_config_file(chat_partition: Path, tmp_path: Path) -> None:
    database = tmp_path / "faasmoe.db"
    earlier = add_tenant(database, "earlier")
    (tmp_path / "key").write_text("a-key-that-was-chosen-by-hand\n")
    (tmp_path / "config.yml").write_text(
        f"port: 0\nthreads: 1\nkv_cache_mb: 8\ndatabase: {database}\n"
        "tenants:\n  - {name: acme, rpm: 3, key_file: key}\n"
    )
    config = ServeConfig.load(tmp_path / "config.yml", {})
    with in_thread(running(chat_partition, config, 0, lambda line: None)) as url:
        acme = ApiClient(url, "a-key-that-was-chosen-by-hand")
        assert completion(acme).headers["x-ratelimit-limit-requests"] == "3"
        assert completion(ApiClient(url, earlier)).status == 200
        with TenantStore.open(database) as store:
            renewed = replace(acme, key=store.rotate_key("acme"))
        assert [completion(client).status for client in (acme, renewed)] == [401, 200]
    assert usage_of(database, "acme").requests == 2
