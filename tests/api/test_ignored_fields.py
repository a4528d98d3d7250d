"""Fields without effect are accepted, logged once and counted; a strict server refuses them."""

import logging
from pathlib import Path
from typing import Any

import pytest

from control_plane.api.ignored_fields import MAX_NAMED, OTHER, IgnoredFields
from control_plane.api.openai.requests import (
    IGNORED_FIELDS,
    parse_chat,
    parse_completion,
    parse_detokenize,
    parse_tokenize,
)
from control_plane.errors import BadRequest
from tests.support.api.api_server import serving

HELLO = [{"role": "user", "content": "hello"}]
EVERYTHING = {
    "metadata": {"a": "b"},
    "store": True,
    "verbosity": "low",
    "safety_identifier": "x",
    "prompt_cache_key": "x",
    "service_tier": "priority",
    "priority": 5,
    "cache_prompt": True,
    "keep_alive": "5m",
    "length_penalty": 0.5,
    "nobody_knows_this": [1],
}
NEUTRAL = {
    "metadata": {},
    "store": False,
    "service_tier": "auto",
    "priority": 0,
    "length_penalty": 1.0,
    "verbosity": None,
}


@pytest.mark.parametrize("parse", [parse_chat, parse_completion])
def test_fields_without_effect(parse: Any) -> None:
    body = {"messages": HELLO} if parse is parse_chat else {"prompt": "a"}
    plain = parse(body)
    request = parse({**body, **EVERYTHING})
    assert set(request.ignored_fields) == set(EVERYTHING)
    assert set(EVERYTHING) - IGNORED_FIELDS == {"nobody_knows_this"}
    assert {**vars(request), "ignored_fields": ()} == vars(plain)
    assert parse({**body, **NEUTRAL}) == plain


def test_fields_of_other_routes() -> None:
    options = {"include_usage": True, "x": 1}
    streamed = parse_completion({"prompt": "a", "stream": True, "stream_options": options})
    assert streamed.ignored_fields == ("stream_options.x",)
    assert parse_tokenize({"prompt": "a", "x": 1}).ignored_fields == ("x",)
    assert parse_detokenize({"tokens": [1], "x": 1, "y": None}).ignored_fields == ("x",)


def test_each_is_named_once_and_counted_always(caplog: pytest.LogCaptureFixture) -> None:
    counted: list[str] = []
    fields = IgnoredFields(False, {"store"}, counted.append)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            fields.note(("store", "x", "y"))
    assert sorted(counted) == sorted(["store", OTHER] * 3)
    assert [record.getMessage().split()[4] for record in caplog.records] == ["'store',", "'x',", "'y',"]


def test_clients_cannot_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    counted: list[str] = []
    fields = IgnoredFields(False, frozenset(), counted.append)
    with caplog.at_level(logging.INFO):
        fields.note(tuple(f"{number}{'x' * 10_000}\n" for number in range(2 * MAX_NAMED)))
    assert counted == [OTHER]
    assert len(caplog.records) == MAX_NAMED
    assert all(len(record.getMessage()) < 200 for record in caplog.records)


def test_a_strict_server_refuses_them() -> None:
    fields = IgnoredFields(True, IGNORED_FIELDS, lambda name: None)
    fields.note(())
    for name, param in (("store", "store"), ("messages.id", "messages"), ("x" * 1000, "x" * 80)):
        with pytest.raises(BadRequest, match="this field is not supported") as refused:
            fields.note((name,))
        assert refused.value.param == param


def test_requests(chat_partition: Path, tmp_path: Path) -> None:
    routes: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": HELLO, "max_tokens": 1},
        "/v1/completions": {"prompt": "a", "max_tokens": 1},
        "/tokenize": {"prompt": "a"},
        "/detokenize": {"tokens": [5]},
    }
    with serving(chat_partition, tmp_path / "lenient.db", open=True) as server:
        for path, body in routes.items():
            assert server.answer("POST", path, {**body, "store": True, "nobody": 1}).status == 200
        samples = server.metrics()
    counted = {
        dict(labels)["field"]: value
        for (name, labels), value in samples.items()
        if name == "faasmoe:ignored_fields_total"
    }
    assert counted == {"store": 4, "other": 4}
    with serving(chat_partition, tmp_path / "strict.db", open=True, strict_fields=True) as server:
        for path, body in routes.items():
            assert server.answer("POST", path, body).status == 200
            refused = server.answer("POST", path, {**body, "nobody": 1})
            assert (refused.status, refused.error["param"]) == (400, "nobody")
