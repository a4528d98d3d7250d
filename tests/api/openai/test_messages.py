"""Messages reach chat templates in the form that these expect, whatever clients leave in them."""

from typing import Any

import pytest
from openai.types.chat import ChatCompletionMessage

from control_plane.api.openai.requests import parse_chat, parse_tokenize
from control_plane.api.text.request import Chat
from control_plane.errors import BadRequest
from tests.support.api.openai_bodies import HELLO, chat, completion, refused

USER = {"role": "user", "content": "a"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"b": 2, "a": [1.5]}'}}
TEMPLATE_CALL = {**CALL, "function": {"name": "add", "arguments": {"b": 2, "a": [1.5]}}}


def chat_of(*messages: Any, **fields: Any) -> Chat:
    (prompt,) = parse_chat({"messages": list(messages), **fields}).prompts
    assert isinstance(prompt, Chat)
    return prompt


def last_message(message: dict[str, Any]) -> dict[str, Any]:
    return chat_of(USER, message).messages[-1]


def refusal(message: dict[str, Any]) -> str:
    with pytest.raises(BadRequest) as refused:
        chat_of(USER, message)
    assert refused.value.param == "messages"
    return str(refused.value)


def test_messages() -> None:
    parts = [{"type": "text", "text": "Wie "}, {"type": "text", "text": "geht's?"}]
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": parts, "name": "Ada"},
        {"role": "assistant", "content": "gut", "tool_calls": None, "refusal": None},
    ]
    assert chat(messages=messages).prompts == (
        Chat(
            [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "Wie geht's?", "name": "Ada"},
                {"role": "assistant", "content": "gut"},
            ]
        ),
    )
    assert chat().is_chat
    assert not completion().is_chat


@pytest.mark.parametrize(
    ("messages", "place"),
    [
        (None, "messages"),
        ([], "messages"),
        ("hello", "messages"),
        ({"role": "user", "content": "hello"}, "messages"),
        (["hello"], "messages[0]"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"content": "hello"}], "messages[0].role"),
        ([{"role": ["user"], "content": "hello"}], "messages[0].role"),
        ([*HELLO, {"role": "function", "content": "hello"}], "messages[1].role"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": []}], "messages[0].content"),
        ([{"role": "user", "content": ["a"]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": "a", "name": 5}], "messages[0].name"),
        ([{"role": "user", "content": "a", "tool_calls": [{}]}], "messages[0].tool_calls[0].function"),
    ],
)
def test_wrong_messages(messages: Any, place: str) -> None:
    refusal = refused(chat, messages=messages)
    assert refusal.param == "messages"
    assert str(refusal).startswith(f"{place}: ")


def test_the_kind_of_a_part_is_named() -> None:
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    assert "'image_url' is not supported" in str(refused(chat, messages=messages))


def test_the_largest_number_of_messages_and_parts() -> None:
    parts = [{"type": "text", "text": "a"}] * 64
    messages = [{"role": "user", "content": parts}] * 2048
    (prompt,) = chat(messages=messages).prompts
    assert isinstance(prompt, Chat)
    assert [message["content"] for message in prompt.messages] == ["a" * 64] * 2048
    # Messages beyond the limit are not validated.
    assert "1 to 2048 messages" in str(refused(chat, messages=[*messages, None]))
    many = [{"role": "user", "content": [*parts, None]}]
    assert str(refused(chat, messages=many)) == (
        "messages[0].content: must be a string or a list of 1 to 64 text parts"
    )


def test_calls_and_their_results() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    result = {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "3.5"}]}
    assert chat_of(USER, call, result).messages == [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [TEMPLATE_CALL]},
        {"role": "tool", "content": "3.5", "tool_call_id": "call_1"},
    ]


@pytest.mark.parametrize(
    ("arguments", "read"),
    [("{}", {}), ("", {}), (None, {}), ({"a": 1}, {"a": 1}), ('{"a": {"b": null}}', {"a": {"b": None}})],
)
def test_arguments_become_an_object(arguments: Any, read: dict[str, Any]) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    (made,) = last_message({"role": "assistant", "tool_calls": [call]})["tool_calls"]
    assert made == {"type": "function", "function": {"name": "f", "arguments": read}}


@pytest.mark.parametrize(
    "arguments",
    [
        "{",
        "[1]",
        '"a"',
        "nothing",
        5,
        "[" * 5000,
        '{"a": %s}' % ("9" * 30),
        '{"a": "\\ud800"}',
        '{"a":' * 65 + "1" + "}" * 65,
    ],
)
def test_arguments_that_are_no_object_for_a_template(arguments: Any) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    text = refusal({"role": "assistant", "tool_calls": [CALL, call]})
    assert text.startswith("messages[1].tool_calls[1].function.arguments: ")


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant"},
        {"role": "assistant", "content": None},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "assistant", "content": [], "tool_calls": None, "function_call": None, "audio": None},
    ],
)
def test_an_assistant_may_have_said_nothing(message: dict[str, Any]) -> None:
    assert last_message(message) == {"role": "assistant", "content": ""}


def test_what_the_official_client_sends_back() -> None:
    answer = ChatCompletionMessage.model_validate(
        {"role": "assistant", "content": "b", "refusal": None, "annotations": [], "reasoning_content": "c"}
    )
    request = parse_chat({"messages": [USER, answer.model_dump()]})
    (prompt,) = request.prompts
    assert isinstance(prompt, Chat)
    assert prompt.messages[-1] == {"role": "assistant", "content": "b", "reasoning_content": "c"}
    assert request.ignored_fields == ()


def test_fields_without_effect_are_named() -> None:
    part = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
    messages = [
        {"role": "user", "content": [part, part], "x": 1, "id": "1"},
        {"role": "assistant", "content": "b", "annotations": [{}], "refusal": "no", "y": None},
    ]
    request = parse_chat({"messages": messages})
    assert sorted(request.ignored_fields) == [
        *("messages.annotations", "messages.content.cache_control", "messages.id"),
        *("messages.refusal", "messages.x"),
    ]


@pytest.mark.parametrize(
    ("message", "place"),
    [
        ({"role": "user"}, "messages[1].content"),
        ({"role": "tool", "content": None}, "messages[1].content"),
        ({"role": "system", "content": []}, "messages[1].content"),
        ({"role": "user", "content": "a", "tool_calls": [CALL]}, "messages[1].tool_calls"),
        ({"role": "assistant", "function_call": {"name": "f"}}, "messages[1].function_call"),
        ({"role": "assistant", "audio": {"id": "1"}}, "messages[1].audio"),
        (
            {"role": "assistant", "tool_calls": [{"type": "custom", "custom": {}}]},
            "messages[1].tool_calls[0]",
        ),
        ({"role": "assistant", "tool_calls": [CALL] * 129}, "messages[1].tool_calls"),
        ({"role": "user", "content": "\ud800"}, "messages[1].content"),
        (
            {"role": "assistant", "content": "", "reasoning_content": "\ud800"},
            "messages[1].reasoning_content",
        ),
        (
            {"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]},
            "messages[1].content[0].type",
        ),
        ({"role": "user", "content": [{"type": "refusal", "text": "a"}]}, "messages[1].content[0].refusal"),
    ],
)
def test_what_is_refused(message: dict[str, Any], place: str) -> None:
    assert refusal(message).startswith(place)


def test_a_refusal_is_text() -> None:
    part = {"type": "refusal", "refusal": "I will not."}
    assert last_message({"role": "assistant", "content": [part]})["content"] == "I will not."


def test_what_else_reaches_the_template() -> None:
    documents = [{"title": "a", "text": "b"}]
    prompt = chat_of(
        USER,
        documents=documents,
        reasoning_effort="low",
        chat_template_kwargs={"enable_thinking": False, "budget": 1},
    )
    assert prompt.documents == documents
    assert prompt.template_variables == {"reasoning_effort": "low", "enable_thinking": False, "budget": 1}
    both = chat_of(USER, reasoning_effort="low", chat_template_kwargs={"reasoning_effort": "high"})
    assert both.template_variables == {"reasoning_effort": "high"}
    assert chat_of(USER, documents=[], chat_template_kwargs=None) == chat_of(USER) == Chat([USER])


@pytest.mark.parametrize(
    ("fields", "generates", "continues"),
    [
        ({}, True, False),
        ({"add_generation_prompt": False}, False, False),
        ({"continue_final_message": True}, False, True),
        ({"continue_final_message": True, "add_generation_prompt": False}, False, True),
    ],
)
def test_how_the_chat_ends(fields: dict[str, Any], generates: bool, continues: bool) -> None:
    prompt = chat_of(USER, **fields)
    assert (prompt.add_generation_prompt, prompt.continue_final_message) == (generates, continues)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("chat_template_kwargs", {"messages": []}),
        ("chat_template_kwargs", {"a-b": 1}),
        ("chat_template_kwargs", {"__class__": 1}),
        ("chat_template_kwargs", {f"a{number}": 1 for number in range(65)}),
        ("chat_template_kwargs", {"a": "x" * (512 << 10)}),
        ("chat_template_kwargs", {"a": 1 << 64}),
        ("chat_template_kwargs", []),
        ("documents", [1]),
        ("documents", [{}] * 257),
        ("documents", [{"text": "\ud800"}]),
        ("reasoning_effort", 5),
        ("reasoning_effort", "x" * 33),
        ("add_generation_prompt", 1),
        ("chat_template", "{{ messages }}"),
    ],
)
def test_wrong_template_variables(field: str, value: Any) -> None:
    with pytest.raises(BadRequest) as refused:
        chat_of(USER, **{field: value})
    assert refused.value.param == field
    with pytest.raises(BadRequest):
        parse_tokenize({"messages": [USER], field: value})


def test_a_chat_cannot_both_continue_and_begin_a_message() -> None:
    with pytest.raises(BadRequest, match="continue_final_message"):
        chat_of(USER, add_generation_prompt=True, continue_final_message=True)


def test_tokenize_reads_chats_alike() -> None:
    fields = {
        "messages": [USER, {"role": "assistant", "tool_calls": [CALL], "id": "1"}],
        "tools": [{"type": "function", "function": {"name": "add"}}],
        "documents": [{"text": "a"}],
        "chat_template_kwargs": {"enable_thinking": True},
        "reasoning_effort": "high",
        "continue_final_message": True,
    }
    request = parse_chat(fields)
    tokenize = parse_tokenize(fields)
    assert (tokenize.prompt, tokenize.ignored_fields) == (request.prompts[0], ("messages.id",))
    assert request.ignored_fields == ("messages.id",)
