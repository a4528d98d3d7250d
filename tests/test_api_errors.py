"""What is wrong with a request, or the system, is told as OpenAI tells it, and harms no other request."""

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from control_plane.app import control_plane
from control_plane.config import ServeConfig
from control_plane.partition.partitioner import partition
from tests.api_server import ApiClient, closed_port, in_thread
from tests.tiny_chat_model import CONTEXT_LENGTH, GRANULARITY, NAME

pytest_plugins = "tests.chat_fixtures"

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def lonely_api(chat_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiClient]:
    """Its gateway is away, and its model has no chat template."""
    parent = tmp_path_factory.mktemp("untemplated")
    checkpoint = shutil.copytree(chat_checkpoint, parent / NAME)
    (checkpoint / "chat_template.jinja").unlink()
    folder = parent / "partition"
    partition(checkpoint, folder, granularity=GRANULARITY)
    config = ServeConfig(port=0, kv_cache_mb=1, threads=1, invocation_deadline=0.2)
    with closed_port() as port:
        gateway_url = URL.build(scheme="http", host="127.0.0.1", port=port)
        with in_thread(control_plane(folder, config, gateway_url, None)) as url:
            yield ApiClient(url)


def refusal(api: ApiClient, path: str, body: Any, status: int = 400) -> Any:
    """The error with which a request is refused."""
    answered, answer = api.ask("POST", path, body)
    assert (answered, list(answer)) == (status, ["error"]), answer
    error = answer["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")
    return error


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"logit_bias": {"5": 100}}, "logit_bias"),
        ({"model": "gpt-4"}, "model"),
        ({"model": 4}, "model"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 5.0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 1 << 63}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 101}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"n": 2}, "n"),
        ({"stream": 1}, "stream"),
        ({"stream_options": []}, "stream_options"),
        ({"user": 7}, "user"),
    ],
)
@pytest.mark.parametrize(("path", "good"), [(CHAT, {"messages": HELLO}), (COMPLETION, {"prompt": "hello"})])
def test_a_wrong_field_is_named(
    api: ApiClient, path: str, good: dict[str, Any], wrong: dict[str, Any], param: str
) -> None:
    error = refusal(api, path, {**good, **wrong})
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")


@pytest.mark.parametrize(
    "prompt", [..., None, "", [], [[]], ["a", "b"], 5, {"text": "a"}, [1.5], [True], [-1], [280], [1 << 70]]
)
def test_wrong_prompts(api: ApiClient, prompt: Any) -> None:
    body = {} if prompt is ... else {"prompt": prompt}
    assert refusal(api, COMPLETION, body)["param"] == "prompt"


@pytest.mark.parametrize(
    "messages",
    [
        ...,
        None,
        [],
        "hello",
        {"role": "user", "content": "hello"},
        ["hello"],
        [{"role": "user"}],
        [{"content": "hello"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
        [{"role": "user", "content": "hello", "tool_calls": []}],
        [{"role": "wizard", "content": "hello"}],
    ],
)
def test_wrong_messages(api: ApiClient, messages: Any) -> None:
    body = {} if messages is ... else {"messages": messages}
    assert refusal(api, CHAT, body)["param"] == "messages"


def test_what_the_chat_template_refuses_is_told(api: ApiClient) -> None:
    error = refusal(api, CHAT, {"messages": [{"role": "wizard", "content": "hello"}]})
    assert error["message"] == "messages: the chat template refuses them: unknown role"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"prompt": "a",}', b"\xff\xfe\xfd", b"[" * 100_000, b'{"seed": ' + b"1" * 5000 + b"}"],
    ids=["empty", "unfinished", "comma", "not UTF-8", "deep", "long number"],
)
def test_what_is_not_json(api: ApiClient, body: bytes) -> None:
    assert refusal(api, COMPLETION, body)["message"].startswith("the body is not JSON")


@pytest.mark.parametrize("body", [[], "hello", 5, None])
def test_json_that_is_no_object(api: ApiClient, body: Any) -> None:
    for path in (CHAT, COMPLETION):
        body_bytes = b"null" if body is None else body
        assert refusal(api, path, body_bytes)["message"] == "the body must be a JSON object"


def test_text_that_is_not_unicode(api: ApiClient) -> None:
    assert "not Unicode" in refusal(api, COMPLETION, b'{"prompt": "\\ud83d"}')["message"]
    message = b'{"role": "user", "content": "\\ude00"}'
    assert "not Unicode" in refusal(api, CHAT, b'{"messages": [' + message + b"]}")["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("prompt_tokens", "max_tokens"), [(CONTEXT_LENGTH, 1), (10, CONTEXT_LENGTH)])
def test_longer_than_the_context(api: ApiClient, prompt_tokens: int, max_tokens: int, stream: bool) -> None:
    body = {"prompt": [5] * prompt_tokens, "max_tokens": max_tokens, "stream": stream}
    error = refusal(api, COMPLETION, body)
    assert error["code"] == "context_length_exceeded"
    for number in (prompt_tokens, max_tokens, CONTEXT_LENGTH):
        assert str(number) in error["message"]


def test_longer_than_the_kv_cache(api: ApiClient) -> None:
    """1 MB holds some 1,800 tokens of 576 bytes."""
    error = refusal(api, COMPLETION, {"prompt": "a", "max_tokens": 2000})
    assert "KV cache" in error["message"]


def test_a_body_that_is_too_large(api: ApiClient) -> None:
    refusal(api, COMPLETION, {"prompt": "a" * (4 << 20)}, status=413)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/models/gpt-4", 404),
        ("GET", "/v1/models/a%0Ab", 404),
        ("GET", "/v1/engines", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", COMPLETION, 405),
        ("POST", "/status", 405),
    ],
)
def test_what_is_not_there(api: ApiClient, method: str, path: str, status: int) -> None:
    answered, answer = api.ask(method, path)
    assert answered == status
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["message"]


def test_refusals_leave_nothing_behind(api: ApiClient) -> None:
    for body in ({"prompt": ""}, {"prompt": "a", "max_tokens": 2000}, {"prompt": "a", "n": 2}):
        refusal(api, COMPLETION, body)
    assert api.status()["engine"] == {"running": 0, "waiting": 0, "kv_cache_used": 0}
    assert api.post(COMPLETION, prompt="a", max_tokens=3)["usage"]["completion_tokens"] == 3


def test_a_model_without_a_chat_template(lonely_api: ApiClient) -> None:
    error = refusal(lonely_api, CHAT, {"messages": HELLO})
    assert error["param"] == "messages"
    assert "no chat template; use /v1/completions" in error["message"]


def test_functions_that_stay_away(lonely_api: ApiClient) -> None:
    error = refusal(lonely_api, COMPLETION, {"prompt": "a"}, status=503)
    assert error["message"].startswith("function tiny-chat-")
    (event,) = lonely_api.stream(COMPLETION, prompt="a")
    assert event["error"]["type"] == "server_error"
    assert lonely_api.status()["engine"] == {"running": 0, "waiting": 0, "kv_cache_used": 0}


def test_status_without_a_gateway(lonely_api: ApiClient) -> None:
    status, report = lonely_api.ask("GET", "/status")
    assert status == 200
    assert "no OpenFaaS gateway answers at" in report["gateway"]["error"]
    assert not any(function["deployed"] for function in report["functions"])
    with closing(lonely_api.send("GET", "/health")) as connection:
        assert connection.getresponse().status == 200
