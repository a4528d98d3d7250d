"""What the fields of the Messages API ask for."""

from typing import Any

import pytest

from control_plane.api.anthropic.requests import parse_count, parse_message
from control_plane.api.text.chats import NOT_TEXT
from control_plane.api.text.request import Chat, GenerationRequest, Sampling, Structure, ToolUse
from control_plane.errors import BadRequest

SCHEMA = {"type": "object", "properties": {"place": {"type": "string", "default": None}}}
LOOK = {"name": "look", "description": "sees", "input_schema": SCHEMA, "cache_control": {"type": "ephemeral"}}
LOOK_TOOL = {"type": "function", "function": {"name": "look", "description": "sees", "parameters": SCHEMA}}
CALL = {"id": "toolu_1", "type": "function", "function": {"name": "look", "arguments": {"place": None}}}
HELLO = {"role": "user", "content": "hello"}


def parsed(**body: Any) -> GenerationRequest:
    return parse_message({"messages": [HELLO], "max_tokens": 5, **body})


def chat_of(request: GenerationRequest) -> Chat:
    (chat,) = request.prompts
    assert isinstance(chat, Chat)
    return chat


def messages(*sent: Any, **body: Any) -> list[dict[str, Any]]:
    return chat_of(parsed(messages=list(sent), **body)).messages


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value, "cache_control": {"type": "ephemeral"}}


def test_the_system_s_text() -> None:
    assert messages(HELLO, system="be brief")[0] == {"role": "system", "content": "be brief"}
    assert messages(HELLO, system=[text("be"), text("brief")])[0] == {
        "role": "system",
        "content": "be\nbrief",
    }
    assert messages(HELLO) == [HELLO]


def test_a_tool_s_image_is_named_to_the_model() -> None:
    content = [text("cat.png:"), {"type": "image", "source": {"type": "base64", "data": "iVBORw"}}]
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": content}
    (found,) = messages({"role": "user", "content": [result]})
    assert found == {"role": "tool", "content": f"cat.png:\n{NOT_TEXT}", "tool_call_id": "toolu_1"}


def test_a_document_beside_a_tool_s_result_is_named_to_the_model() -> None:
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "cat.pdf"}
    assert messages({"role": "user", "content": [result, {"type": "document", "source": {}}]}) == [
        {"role": "tool", "content": "cat.pdf", "tool_call_id": "toolu_1"},
        {"role": "user", "content": NOT_TEXT},
    ]


def test_the_turns_of_an_agent() -> None:
    found = messages(
        {"role": "user", "content": [text("who "), text("sat?")]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "a cat?", "signature": "abc"},
                {"type": "redacted_thinking", "data": "xyz"},
                text("I look"),
                {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"place": None}},
                {"type": "tool_use", "id": "toolu_2", "name": "look", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": "a cat"},
                {"type": "tool_result", "tool_use_id": "toolu_2", "content": [text("b")], "is_error": True},
                {"type": "tool_result", "tool_use_id": "toolu_3"},
                text("go on"),
            ],
        },
    )
    assert found == [
        {"role": "user", "content": "who sat?"},
        {
            "role": "assistant",
            "reasoning_content": "a cat?",
            "content": "I look",
            "tool_calls": [CALL, {**CALL, "id": "toolu_2", "function": {"name": "look", "arguments": {}}}],
        },
        {"role": "tool", "content": "a cat", "tool_call_id": "toolu_1"},
        {"role": "tool", "content": "b", "tool_call_id": "toolu_2"},
        {"role": "tool", "content": "", "tool_call_id": "toolu_3"},
        {"role": "user", "content": "go on"},
    ]


def test_an_answer_continues_a_last_message_of_the_assistant_s() -> None:
    chat = chat_of(parsed(messages=[HELLO, {"role": "assistant", "content": "the answer is ("}]))
    assert (chat.add_generation_prompt, chat.continue_final_message) == (False, True)
    chat = chat_of(parsed())
    assert (chat.add_generation_prompt, chat.continue_final_message) == (True, False)


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        (None, ("auto", True)),
        ({"type": "auto", "disable_parallel_tool_use": True}, ("auto", False)),
        ({"type": "any"}, ("required", True)),
        ({"type": "tool", "name": "look", "disable_parallel_tool_use": True}, ("look", False)),
    ],
)
def test_the_choice_of_a_tool(choice: Any, wanted: tuple[str, bool]) -> None:
    request = parsed(tools=[LOOK], tool_choice=choice)
    assert request.tool_use == ToolUse((LOOK_TOOL,), *wanted)
    assert chat_of(request).tools == [LOOK_TOOL]


def test_no_tools_are_called() -> None:
    bodies: list[Any] = [{"tools": [LOOK], "tool_choice": {"type": "none"}}, {"tools": []}, {}]
    for body in bodies:
        request = parsed(**body)
        assert (request.tool_use, chat_of(request).tools) == (None, None)


def test_tools_of_anthropic_s_own_are_left_out() -> None:
    own = {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}
    assert chat_of(parsed(tools=[own, {**LOOK, "type": "custom"}])).tools == [LOOK_TOOL]
    assert parsed(tools=[own]).tool_use is None


@pytest.mark.parametrize(
    ("body", "variables"),
    [
        ({}, {}),
        ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, {"enable_thinking": True}),
        ({"thinking": {"type": "adaptive"}}, {"enable_thinking": True}),
        ({"thinking": {"type": "disabled"}}, {"enable_thinking": False}),
        ({"output_config": {"effort": "low"}}, {"reasoning_effort": "low"}),
    ],
)
def test_the_template_sees_whether_to_think(body: Any, variables: dict[str, Any]) -> None:
    assert chat_of(parsed(**body)).template_variables == variables


def test_numbers_and_stop_sequences() -> None:
    request = parsed(
        temperature=0.5, top_p=0.25, top_k=3, stop_sequences=["END", "\n"], stream=True, model="tiny"
    )
    assert request.sampling == Sampling(temperature=0.5, top_p=0.25, top_k=3)
    assert (request.max_tokens, request.stop, request.stream) == (5, ("END", "\n"), True)
    # A session of an agent is not a tenant.
    assert parsed(metadata={"user_id": "user_abc_account__session_1"}).user is None


def test_the_form_of_the_text() -> None:
    form = {"type": "json_schema", "schema": SCHEMA}
    place = "output_config.format.schema"
    assert parsed(output_config={"format": form}).structure == Structure("json_schema", place, SCHEMA)
    assert parsed(output_format=form).structure == Structure("json_schema", "output_format.schema", SCHEMA)


def test_what_claude_code_sends_is_accepted() -> None:
    request = parsed(
        model="tiny",
        max_tokens=32000,
        system=[text("You are Claude Code."), text("Rules")],
        messages=[{"role": "user", "content": [text("<system-reminder>"), text("fix it")]}],
        tools=[LOOK, {"type": "web_search_20250305", "name": "web_search"}],
        metadata={"user_id": "user_abc_account__session_1"},
        thinking={"type": "enabled", "budget_tokens": 31999},
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        output_config={"effort": "medium"},
        temperature=1,
        stream=True,
    )
    assert [message["role"] for message in chat_of(request).messages] == ["system", "user"]


def test_counting_needs_no_limit() -> None:
    counted = parse_count({"messages": [HELLO], "tools": [LOOK], "speed": "fast"})
    assert isinstance(counted.prompt, Chat)
    assert (counted.prompt.tools, counted.ignored_fields) == ([LOOK_TOOL], ("speed",))


@pytest.mark.parametrize(
    ("body", "param", "text"),
    [
        ({"max_tokens": None}, "max_tokens", "missing"),
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "user", "content": []}]}, "messages", "nothing to answer"),
        ({"messages": [{"role": "system", "content": "a"}]}, "messages", "nothing to answer"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "messages",
            "'image'",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "video"}]}
                        ],
                    }
                ]
            },
            "messages",
            r"content\[0\].content\[0\].type: 'video' is not supported, only 'text', 'image'",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "a"}]}]},
            "messages",
            "name: is missing",
        ),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages", "robot"),
        ({"tools": [{"input_schema": {}}]}, "tools", "name: is missing"),
        ({"tools": [{**LOOK, "name": "a b"}]}, "tools", r"tools\[0\].name: must be 1 to 128 letters"),
        ({"tools": [{**LOOK, "name": "auto"}]}, "tools", "cannot be named 'auto'"),
        ({"tools": [LOOK, LOOK]}, "tools", r"tools\[1\].name: there is another tool"),
        ({"tools": [{**LOOK, "description": "\ud800"}]}, "tools", "Unicode"),
        ({"tool_choice": {"type": "any"}}, "tool_choice", "no tool to call"),
        ({"tool_choice": {"type": "tool", "name": "fly"}, "tools": [LOOK]}, "tool_choice", "'fly'"),
        ({"stop_sequences": [""]}, "stop_sequences", "1 to 1024"),
        ({"temperature": 3}, "temperature", "0 to 2"),
        ({"output_config": {"format": {"type": "xml", "schema": {}}}}, "output_config.format.type", "xml"),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"maximum": 1 << 70}}}},
            "output_config.format.schema",
            "64 bits",
        ),
    ],
)
def test_refusals(body: dict[str, Any], param: str, text: str) -> None:
    with pytest.raises(BadRequest, match=text) as raised:
        parsed(**body)
    assert raised.value.param == param


def test_what_is_no_object() -> None:
    others: list[Any] = [[], "a", None]
    for body in others:
        with pytest.raises(BadRequest, match="JSON object"):
            parse_message(body)
