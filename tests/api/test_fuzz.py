"""Whatever a body is, the answer is 200 or one clear refusal, in time, and the server serves on.

FAASMOE_FUZZ_EXAMPLES=2000 runs more examples of each body than a test run does.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.api.api_server import COMPLETION, IDLE, ApiClient, eventually

pytestmark = pytest.mark.slow

EXAMPLES = int(os.environ.get("FAASMOE_FUZZ_EXAMPLES", "100"))
CHAT = "/v1/chat/completions"
GOOD: Mapping[str, Mapping[str, Any]] = {
    COMPLETION: {"prompt": "a", "max_tokens": 1},
    CHAT: {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [5]},
}
FIELDS = (
    *("prompt", "messages", "tokens", "model", "n", "stop", "temperature", "top_p", "top_k", "min_p", "seed"),
    *("repetition_penalty", "ignore_eos", "stream", "stream_options", "return_token_ids", "user", "logprobs"),
    *(
        "top_logprobs",
        "max_tokens",
        "max_completion_tokens",
        "echo",
        "best_of",
        "suffix",
        "logit_bias",
        "tools",
    ),
    *(
        "response_format",
        "add_special_tokens",
        "add_generation_prompt",
        "role",
        "content",
        "name",
        "type",
        "text",
    ),
)
REFUSALS = {400, 401, 404, 413, 429}

numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from(
        [0, 1, 2, -1, 1 << 31, 1 << 63, (1 << 63) - 1, -(1 << 63), 1 << 64, 10**400, 1e308, -0.0]
    ),
)
# Half of a surrogate pair, a byte of zeros, and what JSON parsers trip over.
texts = st.one_of(
    st.text(max_size=20),
    st.text(st.characters(categories=["Cs", "Cc", "Co"]), max_size=5),
    st.sampled_from(
        ["", "\x00", "a" * 5000, "<|end|>", "\u2028", "\ufeff", "user", "system", "text", "{{ 1 }}"]
    ),
)
leaves = st.none() | st.booleans() | numbers | texts
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS) | texts, inner, max_size=4)
    ),
    max_leaves=12,
)
messages = st.lists(
    st.fixed_dictionaries({"role": texts, "content": values}, optional={"name": values}), max_size=3
)
token_ids = st.lists(numbers, max_size=5)
fields = st.dictionaries(
    st.sampled_from(FIELDS), values | messages | token_ids | st.lists(texts, max_size=3), max_size=3
)


def changed(path: str) -> st.SearchStrategy[bytes]:
    """Good bodies with some fields changed, added or removed."""

    def body(changes: dict[str, Any], removed: list[str]) -> bytes:
        merged = {**GOOD[path], **changes}
        kept = {name: value for name, value in merged.items() if name not in removed}
        return json.dumps(kept).encode()

    return st.builds(body, fields, st.lists(st.sampled_from(FIELDS), max_size=1))


def cut(path: str) -> st.SearchStrategy[bytes]:
    """Good bodies with bytes put in between."""
    whole = json.dumps(GOOD[path]).encode()
    return st.builds(
        lambda at, put, skipped: whole[:at] + put + whole[at + skipped :],
        st.integers(0, len(whole)),
        st.binary(max_size=6)
        | st.sampled_from([b"NaN", b"-Infinity", b"1e400", b"\\ud800", b"[" * 3000, b"\x00"]),
        st.integers(0, 8),
    )


def check(api: ApiClient, path: str, body: bytes) -> None:
    answer = api.answer("POST", path, body)
    assert answer.headers["x-request-id"]
    if answer.status != 200:
        assert answer.status in REFUSALS, (body, answer)
        assert answer.error["message"]
        if answer.status == 429:
            assert answer.headers["Retry-After"] or answer.headers["x-should-retry"] == "false"
    elif answer.headers.get_content_type() == "text/event-stream":
        assert answer.body.endswith(b"data: [DONE]\n\n")
        assert b'"error":{' not in answer.body
    else:
        assert isinstance(answer.json, dict)


@pytest.mark.parametrize("path", GOOD)
def test_bodies(api: ApiClient, path: str) -> None:
    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    @given(
        st.one_of(changed(path), cut(path), values.map(lambda value: json.dumps(value).encode()), st.binary())
    )
    @example(b"")
    @example(b"\xef\xbb\xbf{}")
    @example(b'{"prompt": "a", "max_tokens": 1' + b"0" * 5000 + b"}")
    @example(b'{"prompt": "a", "temperature": 1e400, "max_tokens": 1}')
    @example(b'{"' + b"a" * 100_000 + b'": 1}')
    def run(body: bytes) -> None:
        check(api, path, body)

    run()
    eventually(api.engine, IDLE)


HEADERS = (
    *(
        "Authorization",
        "X-Request-Id",
        "Content-Type",
        "Accept",
        "Accept-Encoding",
        "Content-Encoding",
        "Cookie",
    ),
    *("Host", "Origin", "Expect", "Range", "If-None-Match", "Connection", "Upgrade", "X-Forwarded-For"),
)
header_values = st.text(
    st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=60
) | st.sampled_from(
    ["Bearer \xff\xfe", "Bearer ", "gzip", "100-continue", "websocket", "bytes=0-1", "a" * 7000]
)


def test_headers(api: ApiClient) -> None:
    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    @given(
        st.sampled_from(["/tokenize", "/v1/models"]),
        st.dictionaries(st.sampled_from(HEADERS), header_values, max_size=3),
    )
    @example("/tokenize", {"Authorization": "Bearer \xff\xfe"})
    @example("/tokenize", {"Expect": "\x80"})
    def run(path: str, headers: dict[str, str]) -> None:
        encoded: Any = {name: value.encode("latin-1") for name, value in headers.items()}
        method, body = ("GET", None) if path == "/v1/models" else ("POST", {"prompt": "a"})
        answer = api.answer(method, path, body, **encoded)
        assert answer.status in {*REFUSALS, 200, 415, 417}, (headers, answer)
        if answer.status != 200:
            assert answer.error["message"]

    run()
