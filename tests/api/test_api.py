"""The API over a whole system: every kind of request generates the same text as transformers."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from typing import Any

import pytest
from yarl import URL

from functions.kernels import load_kernel
from tests.support.api.api_server import IDLE, ApiClient, eventually
from tests.support.models.tiny_chat_model import CONTEXT_LENGTH, END, EXPERTS, NAME

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "what is on the mat?"}]
LONG = {"prompt": "the cat", "max_tokens": 1500, "temperature": 0}
LONG_INVOCATIONS = 1500 * 3
"""Invocations of an answer of 1500 tokens: at least one per token and layer."""


def test_a_completion_equals_the_text_of_transformers(api: ApiClient, tokenizer: Any, expected: Any) -> None:
    token_ids = tokenizer("the cat, naïve")["input_ids"]
    text = expected(token_ids, 50)
    for prompt in ("the cat, naïve", ["the cat, naïve"], token_ids, [token_ids]):
        answer = api.post(COMPLETION, model=NAME, prompt=prompt, max_tokens=50, temperature=0)
        assert answer["object"] == "text_completion"
        assert answer["model"] == NAME
        assert answer["choices"] == [{"index": 0, "text": text, "logprobs": None, "finish_reason": "length"}]


def test_a_stream_adds_up_to_the_same_text(api: ApiClient, tokenizer: Any, expected: Any) -> None:
    text = expected(tokenizer("the cat")["input_ids"], 120)
    # Each byte is a token. A character of several bytes must not be sent before its last byte.
    assert any(ord(character) > 127 and character != "\ufffd" for character in text)
    events = api.stream(COMPLETION, prompt="the cat", max_tokens=120, temperature=0)
    choices = [choice for event in events for choice in event["choices"]]
    assert "".join(choice["text"] for choice in choices) == text
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["length"]
    assert len({event["id"] for event in events}) == 1
    assert {event["object"] for event in events} == {"text_completion"}
    assert len(events) > 60


def test_a_chat_continues_the_text_of_the_template(api: ApiClient, tokenizer: Any, expected: Any) -> None:
    token_ids = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    text = expected(token_ids, 40)
    whole = api.post(CHAT, messages=MESSAGES, max_completion_tokens=40, temperature=0)
    assert whole["object"] == "chat.completion"
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": text}
    assert whole["usage"]["prompt_tokens"] == len(token_ids)
    events = api.stream(CHAT, messages=MESSAGES, max_tokens=40, temperature=0)
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == text
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert events[-1]["choices"][0]["finish_reason"] == "length"


def test_usage(api: ApiClient, tokenizer: Any) -> None:
    asked = {"prompt": "the cat sat", "temperature": 0}
    usage = api.post(COMPLETION, **asked)["usage"]
    prompt_tokens = len(tokenizer("the cat sat")["input_ids"])
    # 16 is OpenAI's default for completions.
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (prompt_tokens, 16)
    assert usage["total_tokens"] == prompt_tokens + 16
    assert 16 * 3 <= usage["experts"]["invocations"] <= 16 * 3 * 2
    assert usage["experts"]["wire_bytes"] > 0
    assert usage["experts"]["seconds"] > 0

    *events, last = api.stream(COMPLETION, **asked, stream_options={"include_usage": True})
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == usage["total_tokens"]
    assert all(event["choices"] and event["usage"] is None for event in events)
    assert all(event["choices"] and "usage" not in event for event in api.stream(COMPLETION, **asked))


def test_a_seed_makes_an_answer_repeatable(api: ApiClient) -> None:
    def answer(seed: int) -> str:
        asked = {"prompt": "the cat", "max_tokens": 32, "temperature": 1.5, "top_p": 0.95, "top_k": 100}
        return str(api.post(COMPLETION, **asked, seed=seed)["choices"][0]["text"])

    assert answer(1) == answer(1)
    assert answer(1) != answer(2)


def test_an_answer_ends_with_the_end_token(api: ApiClient) -> None:
    answer = api.post(COMPLETION, prompt="the cat", max_tokens=200, temperature=2, seed=1, n=3)
    ended = [choice for choice in answer["choices"] if choice["finish_reason"] == "stop"]
    assert ended
    assert answer["usage"]["completion_tokens"] < 3 * 200
    assert not any(END in choice["text"] for choice in answer["choices"])
    # The same tokens, and more after the end token.
    longer = api.post(
        COMPLETION, prompt="the cat", max_tokens=200, temperature=2, seed=1, n=3, ignore_eos=True
    )
    assert longer["usage"]["completion_tokens"] == 3 * 200
    for choice in ended:
        # The end token may have come within a character.
        text = choice["text"].rstrip("\N{REPLACEMENT CHARACTER}")
        assert longer["choices"][choice["index"]]["text"].startswith(text)


def test_answers_do_not_depend_on_concurrent_requests(api: ApiClient) -> None:
    def answer(number: int) -> str:
        body = {
            "prompt": f"the {number} cats",
            "max_tokens": 20 + number,
            "temperature": 0,
            "user": str(number),
        }
        return str(api.post(COMPLETION, **body)["choices"][0]["text"])

    alone = [answer(number) for number in range(8)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(answer, range(8))) == alone


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_sequence(api: ApiClient, stream: bool) -> None:
    before = invocations(api)
    with closing(api.send("POST", COMPLETION, {**LONG, "stream": stream})) as connection:
        if stream:
            assert read_event(connection)
        eventually(lambda: api.engine()["running"], 1)
    eventually(api.engine, IDLE)
    assert 0 < invocations(api) - before < LONG_INVOCATIONS / 2


def test_models(api: ApiClient) -> None:
    status, models = api.ask("GET", "/v1/models")
    assert (status, models["object"]) == (200, "list")
    assert [(model["id"], model["object"]) for model in models["data"]] == [(NAME, "model")]
    # The small KV cache holds fewer tokens than the context.
    assert 0 < models["data"][0]["max_model_len"] < CONTEXT_LENGTH
    assert api.ask("GET", f"/v1/models/{NAME}") == (200, models["data"][0])


def test_tokenize_and_detokenize(api: ApiClient, tokenizer: Any) -> None:
    token_ids = tokenizer("the cat, naïve")["input_ids"]
    answer = api.post("/tokenize", prompt="the cat, naïve")
    assert (answer["tokens"], answer["count"]) == (token_ids, len(token_ids))
    assert api.post("/detokenize", tokens=token_ids) == {"prompt": "the cat, naïve"}
    chat = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert api.post("/tokenize", messages=MESSAGES)["tokens"] == chat


def test_a_request_has_an_id(api: ApiClient) -> None:
    own = [api.answer("GET", path).headers["x-request-id"] for path in ("/health", "/status", "/nowhere")]
    assert all(own)
    assert len(set(own)) == len(own)
    for given, taken in (("my-id.1", True), ("a" * 129, False), ("a b", False)):
        headers = api.answer("POST", COMPLETION, {"prompt": "a"}, **{"X-Request-Id": given}).headers
        assert (headers["x-request-id"] == given) == taken


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_health(api: ApiClient, path: str) -> None:
    with closing(api.send("GET", path)) as connection:
        assert connection.getresponse().status == 200


def test_status_reports_engine_and_functions(api: ApiClient) -> None:
    api.post(COMPLETION, prompt="the cat", max_tokens=2)
    report = api.status()
    assert report["model"] == NAME
    assert report["gateways"][0]["error"] is None
    engine = report["engine"]
    assert engine.pop("steps") >= 2
    assert sum(engine.pop("step_seconds").values()) > 0
    assert 0 < engine.pop("prefix_cache_used") < 1
    assert engine.pop("prefix_evictions") >= 0
    assert engine == {**IDLE, "preemptions": 0}
    assert set(report["open"]) == {"tasks", "connections", "file_descriptors"}
    assert all(count > 0 for count in report["open"].values())
    assert report["kernel"] == load_kernel().name
    assert report["memory_bytes"] > 0
    assert [function["experts"] for function in report["functions"]] == EXPERTS
    for function in report["functions"]:
        assert (function["deployed"], function["replicas"], function["available_replicas"]) == (True, 1, 1)
        assert function["memory_bytes"] > 0
        assert function["kernel"] == load_kernel().name
        assert function["invocations"] > 0
        assert function["resident_experts"] > 0


def test_status_does_not_wake_functions(api: ApiClient) -> None:
    report = api.status()
    gateway = ApiClient(URL(report["gateways"][0]["url"]))
    for function in report["functions"]:
        name = function["function"]
        scale = {"serviceName": name, "replicas": 0}
        with closing(gateway.send("POST", f"/system/scale-function/{name}", scale)) as connection:
            assert connection.getresponse().status == 202
    for _ in range(2):
        for function in api.status()["functions"]:
            assert (function["replicas"], function["available_replicas"]) == (0, 0)
            assert (function["memory_bytes"], function["resident_experts"]) == (0, 0)
    api.post(COMPLETION, prompt="the cat", max_tokens=4)
    assert any(function["available_replicas"] for function in api.status()["functions"])


def invocations(api: ApiClient) -> int:
    return sum(function["invocations"] for function in api.status()["functions"])


def read_event(connection: HTTPConnection) -> bytes:
    return connection.getresponse().readline()
