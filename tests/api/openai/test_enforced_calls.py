"""Calls that a grammar enforces, from a whole system and a vocabulary with the marks of calls as tokens."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from control_plane.partition.granularity import Granularity
from control_plane.partition.partitioner import partition
from tests.support.api.api_server import ApiClient, serving
from tests.support.models.scripted_model import save_scripted_checkpoint

pytestmark = pytest.mark.slow

PATH = "/v1/chat/completions"
WEATHER = {"properties": {"city": {"type": "string"}}, "required": ["city"]}
ALARM = {
    "properties": {"hour": {"type": "integer", "minimum": 10}, "day": {"enum": ["Monday", "Tuesday"]}},
    "required": ["hour", "day"],
}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", **schema}}}
    for name, schema in {"get_weather": WEATHER, "set_alarm": ALARM}.items()
]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiClient]:
    folder = tmp_path_factory.mktemp("scripted")
    partition(save_scripted_checkpoint(folder / "model"), folder / "partition", granularity=Granularity(5, 3))
    with serving(folder / "partition", folder / "faasmoe.db", open=True) as client:
        yield client


def named(tool: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": tool}}


@pytest.mark.parametrize(
    ("choice", "call", "reason"),
    [
        ("required", ("get_weather", {"city": "Rome"}), "tool_calls"),
        (named("get_weather"), ("get_weather", {"city": "Rome"}), "stop"),
        # Not what the model would call.
        (named("set_alarm"), ("set_alarm", {"hour": 10, "day": "Monday"}), "stop"),
    ],
    ids=["required", "wanted", "unwanted"],
)
def test_enforced_calls(api: ApiClient, choice: Any, call: tuple[str, Any], reason: str) -> None:
    asked = {"messages": [{"role": "user", "content": "a"}], "tools": TOOLS, "tool_choice": choice}
    whole = api.post(PATH, **asked)["choices"][0]
    (found,) = whole["message"]["tool_calls"]
    assert (found["function"]["name"], json.loads(found["function"]["arguments"])) == call
    assert (whole["message"]["content"], whole["finish_reason"]) == (None, reason)

    choices = [event["choices"][0] for event in api.stream(PATH, **asked)]
    parts = [part["function"] for each in choices for part in each["delta"].get("tool_calls", ())]
    assert (parts[0]["name"], json.loads("".join(part["arguments"] for part in parts))) == call
    assert choices[-1]["finish_reason"] == reason


def test_what_the_grammar_cannot_enforce(api: ApiClient) -> None:
    def asked(**schema: Any) -> dict[str, Any]:
        parameters = {"type": "object", "properties": {"file": schema}, "required": ["file"]}
        tool = {"type": "function", "function": {"name": "read", "parameters": parameters}}
        messages = [{"role": "user", "content": "a"}]
        return {"messages": messages, "tools": [tool], "tool_choice": "required"}

    # Its format only describes.
    message = api.post(PATH, **asked(type="string", format="path"))["choices"][0]["message"]
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"file": ""}

    error = api.refusal(PATH, asked(type="array", uniqueItems=True))
    assert error["param"] == "tools.read"
    assert error["message"] == 'tools.read: at $.properties.file: Unimplemented keys: ["uniqueItems"]'
