"""Tenants see nothing of each other; and the tenants of an open server."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.api.api_server import (
    ASK,
    COMPLETION,
    ApiClient,
    add_tenant,
    completion,
    holding,
    serving,
    usage_of,
)
from tests.support.models.chat_fixtures import NewTenant
from tests.support.models.tiny_chat_model import NAME

pytestmark = pytest.mark.slow


def test_a_tenant_sees_nothing_of_another(new_tenant: NewTenant, server: ApiClient) -> None:
    seen, curious = new_tenant("watched-one", rpm=1000), new_tenant("curious-one", rpm=8, tpm=1000)
    secret = "the secret of the watched"
    assert secret in completion(seen, prompt=secret, echo=True).json["choices"][0]["text"]
    answers = []
    with holding(seen, prompt=secret):
        requests: list[tuple[str, str, Any]] = [
            ("GET", "/v1/models", None),
            ("GET", f"/v1/models/{NAME}", None),
            ("GET", "/v1/models/watched-one", None),
            ("GET", "/status", None),
            ("GET", "/metrics", None),
            ("GET", "/health", None),
            ("GET", "/ready", None),
            ("POST", "/tokenize", {"prompt": "a"}),
            ("POST", COMPLETION, {**ASK, "prompt": [5] * 10_000}),
            ("POST", COMPLETION, {**ASK, "user": 5}),
            *[("POST", COMPLETION, ASK)] * 9,
        ]
        for client in (curious, server):
            answers += [client.answer(*request) for request in requests]
    assert {answer.status for answer in answers} >= {200, 400, 401, 404, 429}
    for answer in answers:
        text = str(answer.headers) + answer.body.decode()
        assert "watched" not in text.replace("/v1/models/watched-one", "").replace("'watched-one'", "")
        assert secret not in text


def test_an_operator_sees_the_series_of_all_tenants(new_tenant: NewTenant, server: ApiClient) -> None:
    seen, operator = new_tenant("series-one"), new_tenant("operator-one", operator=True)
    assert completion(seen).status == 200

    def tenants(client: ApiClient) -> set[str]:
        return {dict(labels).get("tenant", "") for _, labels in client.metrics()} - {""}

    assert "series-one" in tenants(operator)
    for other in (seen, server, server.with_key("fm-nobody-s-key-at-all")):
        assert tenants(other) == set()


def test_clients_of_an_open_server_see_no_series_of_tenants(
    open_server: ApiClient, open_database: Path
) -> None:
    """Whoever sends requests there is a tenant; its operator has a key, or reads the database."""
    assert completion(open_server, user="open-one").status == 200
    operator = open_server.with_key(add_tenant(open_database, "open-operator", operator=True))
    named = {dict(labels).get("tenant", "") for _, labels in operator.metrics()}
    assert "open-one" in named
    for other in (open_server, open_server.with_key("fm-nobody-s-key")):
        assert all("tenant" not in dict(labels) for _, labels in other.metrics())


def test_gateways_addresses_are_for_operators(new_tenant: NewTenant, server: ApiClient) -> None:
    tenant, operator = new_tenant("status-one"), new_tenant("status-operator", operator=True)
    report = operator.status()
    url = report["gateways"][0]["url"]
    assert {function["gateway"] for function in report["functions"]} == {url}
    for other in (tenant, server):
        seen = other.answer("GET", "/status")
        assert seen.status == 200
        assert url not in seen.body.decode()
        assert seen.json.keys() == report.keys()
        assert seen.json["gateways"] == [{"url": None, "error": None}]


@pytest.mark.parametrize("host", ["rebound.example", "rebound.example:8000", "[", "", "127.0.0.1.example"])
def test_a_name_that_was_pointed_here_reaches_no_open_server(open_server: ApiClient, host: str) -> None:
    """A page can make its own name lead here; the browser then takes the server for its site."""
    for method, path, body in (("POST", COMPLETION, ASK), ("GET", "/v1/models", None)):
        assert open_server.answer(method, path, body, Host=host).status in (400, 401)
    for good in ("localhost", "127.0.0.1:5", "[::1]"):
        assert open_server.answer("GET", "/v1/models", Host=good).status == 200


def test_concurrent_answers_are_not_mixed_up(new_tenant: NewTenant) -> None:
    """Many concurrent requests: each answer begins with the word in its own prompt."""
    words = ["amber", "birch", "coral", "delta", "ebony"]
    clients = [new_tenant(word) for word in words]

    def ask(number: int) -> tuple[str, str]:
        word = words[number % len(words)]
        prompt = " ".join([word] * (1 + number % 4))
        api = clients[number % len(words)]
        events = api.stream(COMPLETION, **{**ASK, "prompt": prompt, "echo": True, "max_tokens": 12})
        return prompt, "".join(event["choices"][0]["text"] for event in events)

    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(ask, range(20)))
    assert together == [ask(number) for number in range(20)]
    for prompt, text in together:
        assert text.startswith(prompt)
        assert not any(word in text for word in words if word not in prompt)


@pytest.fixture(scope="module")
def open_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("open") / "faasmoe.db"


@pytest.fixture(scope="module")
def open_server(chat_partition: Path, open_database: Path) -> Iterator[ApiClient]:
    with serving(chat_partition, open_database, open=True) as client:
        yield client


def test_the_user_field_names_the_tenant_of_an_open_server(
    open_server: ApiClient, open_database: Path
) -> None:
    # Many clients always send a key.
    for api in (open_server, open_server.with_key("none")):
        assert completion(api, user="guest").status == 200
        assert completion(api).status == 200
    assert usage_of(open_database, "guest").requests == 2
    assert usage_of(open_database, "default").requests == 2


def test_a_registered_tenant_needs_its_key_on_an_open_server(
    open_server: ApiClient, open_database: Path
) -> None:
    api = open_server.with_key(add_tenant(open_database, "member", rpm=5))
    refused = completion(open_server, user="member")
    assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")
    # With a key, the user field does not choose the tenant.
    answer = completion(api, user="a user, of the member's")
    assert answer.headers["x-ratelimit-limit-requests"] == "5"
    assert usage_of(open_database, "member").requests == 1


@pytest.mark.parametrize("name", ["two words", "-", "a" * 65, "a\nb", "naïve", "../up"])
def test_bad_tenant_names_on_an_open_server(open_server: ApiClient, name: str) -> None:
    refused = completion(open_server, user=name)
    assert (refused.status, refused.error["param"]) == (400, "user")
