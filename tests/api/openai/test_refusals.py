"""A wrong request is refused with OpenAI's error, which names the field, and affects no other request."""

import re
from typing import Any

import pytest

from tests.support.api.api_server import IDLE, ApiClient
from tests.support.models.tiny_chat_model import CONTEXT_LENGTH

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
HELLO = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"model": 4}, "model"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 5.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 1 << 63}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 1.1}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"seed": 1 << 63}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": 5}, "stop"),
        ({"logprobs": "yes"}, "logprobs"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"tools": 5}, "tools"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": []}, "stream_options"),
        ({"structured_outputs": {"more": True}}, "structured_outputs.more"),
        ({"user": 7}, "user"),
    ],
)
@pytest.mark.parametrize(("path", "good"), [(CHAT, {"messages": HELLO}), (COMPLETION, {"prompt": "hello"})])
def test_a_wrong_field_is_named(
    api: ApiClient, path: str, good: dict[str, Any], wrong: dict[str, Any], param: str
) -> None:
    error = api.refusal(path, {**good, **wrong})
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")


@pytest.mark.parametrize(
    "prompt",
    [
        ...,
        None,
        "",
        [],
        [[]],
        ["a", ""],
        ["a", 5],
        [5, "a"],
        ["a"] * 257,
        5,
        {"text": "a"},
        [1.5],
        [True],
        [-1],
        [280],
        [1 << 70],
    ],
)
def test_wrong_prompts(api: ApiClient, prompt: Any) -> None:
    body = {} if prompt is ... else {"prompt": prompt}
    assert api.refusal(COMPLETION, body)["param"] == "prompt"


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
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}],
        [{"role": "user", "content": "hello", "tool_calls": [{}]}],
        [{"role": "wizard", "content": "hello"}],
    ],
)
def test_wrong_messages(api: ApiClient, messages: Any) -> None:
    body = {} if messages is ... else {"messages": messages}
    assert api.refusal(CHAT, body)["param"] == "messages"


def test_the_chat_template_s_error_is_reported(api: ApiClient) -> None:
    error = api.refusal(CHAT, {"messages": [{"role": "assistant", "content": "hello"}]})
    assert error["message"] == "messages: the chat template refuses them: who asks?"


@pytest.mark.parametrize(("path", "body"), [(CHAT, {"messages": HELLO}), (COMPLETION, {"prompt": "hello"})])
def test_a_model_that_is_not_served(api: ApiClient, path: str, body: Any) -> None:
    error = api.refusal(path, {**body, "model": "gpt-4"}, status=404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")


def test_more_answers_than_a_request_may_have(api: ApiClient) -> None:
    """The request is refused before lists of tokens are made for all choices."""
    error = api.refusal(COMPLETION, {"prompt": [[5] * 10] * 20, "n": 7, "max_tokens": 1})
    assert error["param"] == "n"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"prompt": "a",}', b"\xff\xfe\xfd", b"[" * 100_000, b'{"seed": ' + b"1" * 5000 + b"}"],
    ids=["empty", "unfinished", "comma", "not UTF-8", "deep", "long number"],
)
def test_a_body_that_is_not_json(api: ApiClient, body: bytes) -> None:
    assert api.refusal(COMPLETION, body)["message"].startswith("the body is not JSON")


@pytest.mark.parametrize(
    "body", [b'{"prompt": "a", "prompt": "b"}', b'{"messages": [{"role": "user", "role": "system"}]}']
)
def test_a_key_that_is_there_twice(api: ApiClient, body: bytes) -> None:
    assert api.refusal(COMPLETION, body)["message"] == "the body is not JSON: an object has a key twice"


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "", "json", "\u00e9"]
)
@pytest.mark.parametrize("path", [COMPLETION, CHAT, "/tokenize", "/detokenize"])
def test_a_body_of_another_type(api: ApiClient, path: str, content_type: str) -> None:
    """Pages of other sites can send a browser's forms and text to an open server, but no JSON."""
    answer = api.answer("POST", path, {"prompt": "a"}, **{"Content-Type": content_type})
    assert answer.status == 415
    assert answer.error["message"] == "the Content-Type must be application/json"
    good = api.answer(
        "POST", "/tokenize", {"prompt": "a"}, **{"Content-Type": "Application/JSON; charset=utf-8"}
    )
    assert good.status == 200


@pytest.mark.parametrize("body", [[], "hello", 5, None])
def test_a_body_that_is_not_an_object(api: ApiClient, body: Any) -> None:
    for path in (CHAT, COMPLETION):
        body_bytes = b"null" if body is None else body
        assert api.refusal(path, body_bytes)["message"] == "the body must be a JSON object"


def test_text_that_is_not_unicode(api: ApiClient) -> None:
    assert "not Unicode" in api.refusal(COMPLETION, b'{"prompt": "\\ud83d"}')["message"]
    message = b'{"role": "user", "content": "\\ude00"}'
    assert "not Unicode" in api.refusal(CHAT, b'{"messages": [' + message + b"]}")["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_longer_than_the_context(api: ApiClient, stream: bool) -> None:
    """OpenAI's words. 1 MB of KV cache holds some 1,800 tokens of 576 bytes, fewer than the context."""
    most = max_model_len(api)
    assert most < 2000 < CONTEXT_LENGTH
    bodies: list[tuple[str, str, dict[str, Any]]] = [
        ("prompt", COMPLETION, {"prompt": [5] * most, "max_tokens": 1}),
        ("prompt", COMPLETION, {"prompt": "a" * 1_000_000}),
        ("messages", CHAT, {"messages": [{"role": "user", "content": "a " * 3000}]}),
        ("messages", CHAT, {"messages": [{"role": "user", "content": "a" * 1_000_000}]}),
    ]
    for field, path, body in bodies:
        error = api.refusal(path, {**body, "stream": stream})
        assert (error["code"], error["param"]) == ("context_length_exceeded", field)
        assert error["type"] == "invalid_request_error"
        assert re.fullmatch(
            rf"This model's maximum context length is {most} tokens\. However, your {field} resulted in "
            rf"(at least )?\d+ tokens\. Please reduce the length of the {field}\. "
            r"\(context_length_exceeded\)",
            error["message"],
        )


@pytest.mark.parametrize("path", [CHAT, COMPLETION])
def test_an_answer_longer_than_the_context_is_cut(api: ApiClient, path: str) -> None:
    prompt = (
        {"prompt": [5] * 1500} if path == COMPLETION else {"messages": [{**HELLO[0], "content": "a " * 700}]}
    )
    answer = api.post(path, **prompt, max_tokens=32_000, ignore_eos=True)
    assert answer["usage"]["total_tokens"] == max_model_len(api)
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("field", ["logit_bias", "stop_token_ids"])
def test_token_ids_that_the_model_does_not_have(api: ApiClient, field: str) -> None:
    value: Any = {"100000": 1} if field == "logit_bias" else [100_000]
    error = api.refusal(COMPLETION, {"prompt": "a", field: value})
    assert error["param"] == field
    assert "token ids must be from 0 to" in error["message"]


def max_model_len(api: ApiClient) -> int:
    return int(api.answer("GET", "/v1/models").json["data"][0]["max_model_len"])


def test_a_body_that_is_too_large(api: ApiClient) -> None:
    error = api.refusal(COMPLETION, {"prompt": "a" * (4 << 20)}, status=413)
    assert error["message"] == "Request Entity Too Large"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/models/gpt-4", 404),
        ("GET", "/v1/models/a%0Ab", 404),
        ("GET", "/v1/engines", 404),
        ("POST", "/v1/audio/speech", 404),
        ("GET", COMPLETION, 405),
        ("POST", "/status", 405),
    ],
)
def test_unknown_paths_and_methods(api: ApiClient, method: str, path: str, status: int) -> None:
    answered, answer = api.ask(method, path)
    assert answered == status
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["message"]


def test_refusals_leave_nothing_behind(api: ApiClient) -> None:
    for body in ({"prompt": ""}, {"prompt": [5] * 2000}, {"prompt": "a", "n": 0}):
        api.refusal(COMPLETION, body)
    assert api.engine() == IDLE
    assert api.post(COMPLETION, prompt="a", max_tokens=3, ignore_eos=True)["usage"]["completion_tokens"] == 3
