"""Whatever a body of the Responses API or of Anthropic's is, it is read, or refused by name."""

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from control_plane.api.anthropic.requests import parse_count, parse_message
from control_plane.api.responses.requests import parse_response
from control_plane.errors import BadRequest

pytestmark = pytest.mark.slow

WORDS = (
    *("input", "messages", "role", "content", "type", "text", "tools", "tool_choice", "name", "parameters"),
    *(
        "input_schema",
        "system",
        "instructions",
        "reasoning",
        "thinking",
        "effort",
        "format",
        "schema",
        "mode",
    ),
    *("output_config", "stop_sequences", "max_tokens", "call_id", "arguments", "output", "summary", "id"),
    *("tool_use_id", "message", "function_call", "function_call_output", "item_reference", "input_text"),
    *("output_text", "tool_use", "tool_result", "function", "allowed_tools", "json_schema", "user"),
    *("assistant", "any", "tool", "none", "required", "custom", "enabled", "", "\ud83d", "{}", "{"),
)
words = st.sampled_from(WORDS)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | words
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=6),
    max_leaves=10,
)
PARTS = st.lists(st.fixed_dictionaries({"type": words, "text": words | values}), max_size=3)
ITEMS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "type": words | values,
            "role": words,
            "content": words | PARTS | values,
            "output": words | PARTS | values,
            "summary": PARTS | values,
            "call_id": words,
            "name": words,
            "arguments": words | values,
        },
    ),
    max_size=4,
)
TOOLS = st.lists(st.fixed_dictionaries({"type": words, "name": words, "parameters": values}), max_size=2)
FIELDS = st.fixed_dictionaries(
    {"input": words | ITEMS | values, "messages": ITEMS | values, "max_tokens": st.just(1) | values},
    optional={
        "tools": TOOLS | values,
        "tool_choice": words | st.fixed_dictionaries({"type": words, "name": words}) | values,
        "system": words | PARTS | values,
        "instructions": values,
        "text": st.fixed_dictionaries({"format": values}) | values,
        "reasoning": st.fixed_dictionaries({"effort": words | values}) | values,
        "thinking": st.fixed_dictionaries({"type": words | values}) | values,
        "output_config": st.dictionaries(words, values, max_size=2) | values,
        "stop_sequences": st.lists(words, max_size=3) | values,
    },
)


@pytest.mark.parametrize("parse", [parse_response, parse_message, parse_count])
def test_bodies(parse: Callable[[Any], object]) -> None:
    @settings(max_examples=100, suppress_health_check=list(HealthCheck))
    @given(FIELDS | values)
    def run(body: Any) -> None:
        sent = json.dumps(body)
        with suppress(BadRequest):
            parse(body)
        assert json.dumps(body) == sent

    run()
