"""What the fields of the Responses API ask for."""

import json
from typing import Any

import pytest

from control_plane.api.responses.requests import ResponseRequest, parse_response
from control_plane.api.text.chats import NOT_TEXT
from control_plane.api.text.request import Chat, Sampling, Structure, ToolUse
from control_plane.errors import BadRequest

SCHEMA = {"type": "object", "properties": {"place": {"type": "string", "default": None}}}
LOOK = {"type": "function", "name": "look", "description": "sees", "parameters": SCHEMA, "strict": True}
WAIT = {"type": "function", "name": "wait", "description": None, "parameters": None}
LOOK_TOOL = {"type": "function", "function": {"name": "look", "description": "sees", "parameters": SCHEMA}}
WAIT_TOOL = {
    "type": "function",
    "function": {"name": "wait", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": {"place": "mat"}}}
CALL_ITEM = {
    "type": "function_call",
    "id": "fc_1",
    "call_id": "call_1",
    "name": "look",
    "arguments": '{"place": "mat"}',
    "status": "completed",
}


def parsed(**body: Any) -> ResponseRequest:
    return parse_response({"input": "hello", **body})


def chat_of(request: ResponseRequest) -> Chat:
    (chat,) = request.prompts
    assert isinstance(chat, Chat)
    return chat


def messages(*items: Any, **body: Any) -> list[dict[str, Any]]:
    return chat_of(parsed(input=list(items), **body)).messages


def refusal(**body: Any) -> BadRequest:
    with pytest.raises(BadRequest) as raised:
        parsed(**body)
    return raised.value


def test_a_string_is_a_message_of_the_user_s() -> None:
    assert chat_of(parsed()).messages == [{"role": "user", "content": "hello"}]
    assert chat_of(parsed(instructions="be brief")).messages == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello"},
    ]


def test_what_comes_before_the_first_user_is_one_message_of_the_system_s() -> None:
    found = messages(
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "rules"}]},
        {"role": "user", "content": "hello"},
        {"role": "system", "content": "later"},
        instructions="be brief",
    )
    assert found == [
        {"role": "system", "content": "be brief\n\nrules"},
        {"role": "user", "content": "hello"},
        {"role": "system", "content": "later"},
    ]


def test_the_items_of_an_agent_s_turn_are_one_message() -> None:
    found = messages(
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "who "}, {"type": "input_text", "text": "sat?"}],
        },
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "a cat?"}],
            "encrypted_content": None,
            "status": None,
        },
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "phase": None,
            "content": [{"type": "output_text", "text": "I look", "annotations": [], "logprobs": None}],
        },
        CALL_ITEM,
        {**CALL_ITEM, "call_id": "call_2", "arguments": ""},
        {"type": "function_call_output", "call_id": "call_1", "output": "a cat"},
        {
            "type": "function_call_output",
            "call_id": "call_2",
            "output": [{"type": "input_text", "text": "b"}],
        },
    )
    assert found == [
        {"role": "user", "content": "who sat?"},
        {
            "role": "assistant",
            "reasoning_content": "a cat?",
            "content": "I look",
            "tool_calls": [CALL, {**CALL, "id": "call_2", "function": {"name": "look", "arguments": {}}}],
        },
        {"role": "tool", "content": "a cat", "tool_call_id": "call_1"},
        {"role": "tool", "content": "b", "tool_call_id": "call_2"},
    ]


def test_a_tool_s_image_is_named_to_the_model() -> None:
    output = [{"type": "input_text", "text": "cat.png"}, {"type": "input_image", "image_url": "data:,x"}]
    (found,) = messages({"type": "function_call_output", "call_id": "call_1", "output": output})
    assert found == {"role": "tool", "content": f"cat.png{NOT_TEXT}", "tool_call_id": "call_1"}


def test_reasoning_before_a_call_and_reasoning_that_is_alone() -> None:
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}
    assert messages({"role": "user", "content": "a"}, thought, CALL_ITEM) == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "reasoning_content": "hm", "content": "", "tool_calls": [CALL]},
    ]
    hello = {"role": "user", "content": "hello"}
    assert messages(thought, hello) == [hello]


def test_tools() -> None:
    request = parsed(tools=[LOOK, WAIT])
    assert request.tool_use == ToolUse((LOOK_TOOL, WAIT_TOOL), "auto", True)
    assert chat_of(request).tools == [LOOK_TOOL, WAIT_TOOL]
    assert parsed().tool_use is None
    assert chat_of(parsed()).tools is None


@pytest.mark.parametrize(
    ("choice", "tools", "wanted"),
    [
        ("required", [LOOK_TOOL, WAIT_TOOL], "required"),
        ({"type": "function", "name": "wait"}, [LOOK_TOOL, WAIT_TOOL], "wait"),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "wait"}]},
            [WAIT_TOOL],
            "required",
        ),
    ],
)
def test_the_choice_of_a_tool(choice: Any, tools: list[Any], wanted: str) -> None:
    request = parsed(tools=[LOOK, WAIT], tool_choice=choice, parallel_tool_calls=False)
    assert request.tool_use == ToolUse(tuple(tools), wanted, False)
    assert request.repeated["tool_choice"] == choice


def test_no_tools_are_called() -> None:
    request = parsed(tools=[LOOK], tool_choice="none")
    assert (request.tool_use, chat_of(request).tools) == (None, None)


def test_tools_that_are_not_functions_are_left_out() -> None:
    others = [
        {"type": "web_search", "filters": None},
        {"type": "local_shell"},
        {"type": "custom", "name": "patch"},
    ]
    request = parsed(tools=[*others, LOOK])
    assert chat_of(request).tools == [LOOK_TOOL]
    assert [tool["name"] for tool in request.repeated["tools"]] == ["look"]
    assert parsed(tools=others).tool_use is None


@pytest.mark.parametrize(
    ("form", "structure"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, Structure("json_object", "text.format")),
        (
            {"type": "json_schema", "name": "cat", "schema": SCHEMA, "strict": True},
            Structure("json_schema", "text.format.schema", SCHEMA),
        ),
        (None, None),
    ],
)
def test_the_form_of_the_text(form: Any, structure: Structure | None) -> None:
    assert parsed(text={"format": form, "verbosity": "low"}).structure == structure


def test_numbers_and_names() -> None:
    request = parsed(temperature=0.5, top_p=0.25, max_output_tokens=7, user="acme", stream=True, model="tiny")
    assert request.sampling == Sampling(temperature=0.5, top_p=0.25)
    assert (request.max_tokens, request.user, request.stream) == (7, "acme", True)
    assert parsed().max_tokens is None


@pytest.mark.parametrize(
    ("reasoning", "variables"),
    [
        (None, {}),
        ({"effort": None, "summary": "auto"}, {}),
        ({"effort": "high"}, {"reasoning_effort": "high"}),
        ({"effort": "none"}, {"reasoning_effort": "none", "enable_thinking": False}),
    ],
)
def test_the_template_sees_the_effort(reasoning: Any, variables: dict[str, Any]) -> None:
    assert chat_of(parsed(reasoning=reasoning)).template_variables == variables


def test_what_codex_sends_is_accepted() -> None:
    request = parsed(
        model="tiny",
        instructions="You are a coding agent.",
        input=[
            {
                "type": "message",
                "role": "developer",
                "content": [{"type": "input_text", "text": "permissions"}],
            },
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "fix it"}]},
        ],
        tools=[LOOK, {"type": "local_shell"}, {"type": "web_search", "external_web_access": False}],
        tool_choice="auto",
        parallel_tool_calls=True,
        reasoning={"effort": "medium", "summary": "auto"},
        store=False,
        stream=True,
        include=["reasoning.encrypted_content"],
        prompt_cache_key="0199-abc",
        text={"verbosity": "medium"},
        client_metadata={"x": "y"},
        service_tier=None,
    )
    assert [message["role"] for message in chat_of(request).messages] == ["system", "user"]


@pytest.mark.parametrize(
    ("body", "param", "text"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "send the whole input"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input", "send the whole input"),
        ({"input": None}, "input", "missing"),
        ({"input": []}, "input", "at least 1"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input", "no message"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input",
            "input_image",
        ),
        ({"input": [{"type": "computer_call", "id": "x"}]}, "input", "computer_call"),
        ({"input": [{"role": "tool", "content": "a"}]}, "input", "'tool' is not supported"),
        ({"input": [{**CALL_ITEM, "arguments": "{"}]}, "input", r"input\[0\].arguments: must be the JSON"),
        ({"input": [{**CALL_ITEM, "arguments": "[" * 100_000}]}, "input", "must be the JSON of an object"),
        ({"tools": [{"name": "look"}]}, "tools", "missing"),
        ({"tools": [{**LOOK, "parameters": 4}]}, "tools", "object"),
        (
            {"tools": [{"type": "web_search"}, {"type": "function"}]},
            "tools",
            r"tools\[1\].name: must",
        ),
        ({"tools": [{**LOOK, "name": "required"}]}, "tools", "cannot be named 'required'"),
        ({"tools": [LOOK, LOOK]}, "tools", r"tools\[1\].name: there is another tool"),
        ({"tools": [{**LOOK, "parameters": {"maximum": 1 << 70}}]}, "tools", "64 bits"),
        ({"tool_choice": "required"}, "tool_choice", "no tool to call"),
        ({"tool_choice": {"type": "function", "name": "fly"}, "tools": [LOOK]}, "tool_choice", "'fly'"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice.type", "web_search"),
        ({"text": {"format": {"type": "json_schema", "name": "cat"}}}, "text.format.schema", "missing"),
        (
            {"text": {"format": {"type": "json_schema", "schema": {"description": "\ud800"}}}},
            "text.format.schema",
            "Unicode",
        ),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type", "xml"),
        ({"background": True}, "background", "not supported"),
        ({"conversation": "conv_1"}, "conversation", "not supported"),
        ({"top_logprobs": 3}, "top_logprobs", "not supported"),
        ({"max_output_tokens": 0}, "max_output_tokens", "at least 1"),
        ({"temperature": 3}, "temperature", "0 to 2"),
        ({"reasoning": 5}, "reasoning", "object"),
    ],
)
def test_refusals(body: dict[str, Any], param: str, text: str) -> None:
    error = refusal(**body)
    assert error.param == param
    with pytest.raises(BadRequest, match=text):
        raise error


def test_what_is_no_object() -> None:
    bodies: list[Any] = [[], "a", None]
    for body in bodies:
        with pytest.raises(BadRequest, match="JSON object"):
            parse_response(body)


def test_what_is_repeated_is_json() -> None:
    repeated = parsed(tools=[LOOK], text={"format": {"type": "json_object"}}).repeated
    assert json.loads(json.dumps(repeated)) == repeated
