"""Paths, model names and keys that the API accepts, and its answers to others."""

import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import openai
import pytest

from control_plane.api.models import ServedModels
from control_plane.errors import UnknownModel
from tests.support.api.api_server import (
    ASK,
    COMPLETION,
    JSON,
    ApiClient,
    add_tenant,
    completion,
    openai_client,
    serving,
)
from tests.support.models.tiny_chat_model import NAME

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]
NAMES = ("gpt-4o", "lab/tiny:1b", "claude-sonnet-4-5")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("database") / "faasmoe.db"


@pytest.fixture(scope="module")
def named(chat_partition: Path, database: Path) -> Iterator[ApiClient]:
    """A client with a key of a server whose model has other names than its partition."""
    with serving(chat_partition, database, served_model_names=NAMES) as server:
        yield server.with_key(add_tenant(database, "acme"))


@pytest.fixture
def client(named: ApiClient) -> Iterator[openai.OpenAI]:
    with openai_client(named, str(named.key)) as client:
        yield client


def test_a_model_with_several_names(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == list(NAMES)
    for name in NAMES:
        assert client.models.retrieve(name).id == name
        answer = client.chat.completions.create(model=name, messages=HELLO, max_tokens=2)  # type: ignore[arg-type]
        assert answer.model == name
        chunks = client.completions.create(model=name, prompt="a", max_tokens=2, stream=True)
        assert {chunk.model for chunk in chunks} == {name}


@pytest.mark.parametrize("fields", [{}, {"model": None}])
def test_a_request_without_a_model_gets_the_first_name(named: ApiClient, fields: dict[str, Any]) -> None:
    assert completion(named, **fields).json["model"] == NAMES[0]
    assert named.answer("POST", "/tokenize", {"prompt": "a", **fields}).status == 200


def test_other_names_are_refused(named: ApiClient) -> None:
    """The partition's own name, too."""
    requests = [
        ("POST", COMPLETION, {**ASK, "model": NAME}),
        ("POST", CHAT, {"messages": HELLO, "model": NAME, "stream": True}),
        ("POST", "/tokenize", {"prompt": "a", "model": NAME}),
        ("POST", "/detokenize", {"tokens": [5], "model": NAME}),
        ("GET", f"/v1/models/{NAME}", None),
    ]
    for method, path, body in requests:
        refused = named.answer(method, path, body)
        assert (refused.status, refused.error["code"]) == (404, "model_not_found")
        assert all(repr(name) in refused.error["message"] for name in NAMES)
    assert {
        label["model_name"]
        for label in (dict(labels) for _, labels in named.metrics())
        if "model_name" in label
    } == {NAMES[0]}


def test_the_model_that_a_body_asks_for() -> None:
    models = ServedModels(("tiny", "other"))
    assert models.asked({"model": "other"}) == "other"
    without: list[Any] = [{}, {"model": None}, {"model": 4}, [], "a", None]
    assert {models.asked(body) for body in without} == {"tiny"}
    for name in ("gpt-4", "gpt-5", "claude-sonnet-4-5"):
        with pytest.raises(UnknownModel, match=f"there is no model '{name}', only 'tiny'"):
            ServedModels(("tiny",)).asked({"model": name})


def test_an_error_repeats_little_of_the_name() -> None:
    with pytest.raises(UnknownModel) as refused:
        ServedModels(("tiny",)).asked({"model": "x" * 100_000})
    assert refused.value.param == "model"
    assert str(refused.value).startswith("model")
    assert str(refused.value).count("x") <= 90


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/models/", None),
        ("GET", f"/v1/models/{NAME}/", None),
        ("POST", f"{CHAT}/", {"messages": HELLO, "max_tokens": 2}),
        ("POST", f"{COMPLETION}/", ASK),
        ("POST", "/tokenize/", {"prompt": "a"}),
    ],
)
def test_a_slash_at_the_end(api: ApiClient, method: str, path: str, body: Any) -> None:
    assert api.ask(method, path.removesuffix("/"), body)[0] == 200
    assert api.ask(method, path, body)[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "nearest"),
    [
        ("POST", "/chat/completions", f"POST {CHAT}"),
        ("POST", "/v1/v1/chat/completions", f"POST {CHAT}"),
        ("POST", "/v1/chat/completion", f"POST {CHAT}"),
        ("GET", "/models", "GET /v1/models"),
        ("POST", "/v1/tokenize", "POST /tokenize"),
        ("GET", "/fm-a-key-that-nobody-may-see" * 200, None),
    ],
)
def test_an_unknown_path_names_the_nearest(
    api: ApiClient, method: str, path: str, nearest: str | None
) -> None:
    answer = api.answer(method, path)
    assert (answer.status, answer.error["type"]) == (404, "invalid_request_error")
    message = answer.error["message"]
    assert f"POST {COMPLETION}" in message
    assert "GET /v1/models/{model}" in message
    assert ("nearest" in message) == (nearest is not None)
    assert nearest is None or f"the nearest is {nearest}; " in message
    assert "fm-a-key" not in message
    assert len(message) < 1000


@pytest.mark.parametrize(
    ("method", "path", "allowed"), [("GET", CHAT, "POST"), ("DELETE", "/v1/models/", "GET, HEAD")]
)
def test_another_method(api: ApiClient, method: str, path: str, allowed: str) -> None:
    answer = api.answer(method, path)
    assert (answer.status, answer.error["type"]) == (405, "invalid_request_error")
    assert answer.headers["Allow"].replace(",", ", ") == allowed
    assert answer.error["message"] == f"this path takes {allowed}"


def test_the_root_says_what_this_is(api: ApiClient) -> None:
    answer = api.with_key(None).answer("GET", "/")
    assert (answer.status, answer.headers.get_content_type()) == (200, "text/plain")
    assert f"POST {CHAT}" in answer.body.decode()
    assert "docs" in answer.body.decode()
    with closing(api.send("HEAD", "/")) as connection:
        head = connection.getresponse()
        assert (head.status, head.read()) == (200, b"")


def keyed(api: ApiClient, **headers: str) -> int:
    """The status of a request without the client's own key."""
    return api.with_key(None).answer("GET", "/v1/models", None, **headers).status


def test_a_key_may_come_as_x_api_key(
    named: ApiClient, database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    key, other = str(named.key), add_tenant(database, "other")
    assert keyed(named, **{"x-api-key": key}) == 200
    assert keyed(named, **{"X-Api-Key": f" {key} ", "Authorization": f"bearer {key}"}) == 200
    for wrong in ("fm-nobody-s", "", f"Bearer {key}"):
        assert keyed(named, **{"x-api-key": wrong}) == 401
    refused = named.answer("GET", "/v1/models", None, **{"x-api-key": other})
    assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")
    assert refused.error["message"] == "the headers Authorization and x-api-key have different keys: send one"
    assert named.with_key(None).answer("POST", COMPLETION, ASK, **{"x-api-key": other}).status == 200
    assert other not in caplog.text
    assert key not in caplog.text
    assert other not in str([vars(record) for record in caplog.records])


def test_an_open_server_takes_any_x_api_key_but_not_two(api: ApiClient) -> None:
    assert keyed(api, **{"x-api-key": "anything"}) == 200
    assert keyed(api, **{"x-api-key": "anything", "Authorization": "Bearer anything"}) == 200
    assert keyed(api, **{"x-api-key": "anything", "Authorization": "Bearer other"}) == 401


def test_the_missing_key_s_message_names_both_headers(named: ApiClient) -> None:
    message = named.with_key(None).answer("GET", "/v1/models", None, **JSON).error["message"]
    assert "Authorization: Bearer KEY" in message
    assert "x-api-key: KEY" in message
