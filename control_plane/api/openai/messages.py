"""The messages of a chat, as clients send them and as chat templates read them."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from control_plane.api.bodies.json_values import check_json
from control_plane.api.bodies.reading import field_error
from control_plane.api.bodies.values import Object, Text
from control_plane.api.text.chats import json_arguments, template_role, tool_call

_CONTENT = "a string or a list of 1 to 64 text parts"


class TextPart(Struct):
    """A part of a message's content: text, or an assistant's refusal, which is text, too."""

    type: Literal["text", "refusal"]
    text: str | None = None
    refusal: str | None = None


class CalledFunction(Struct):
    """The function that a call is of."""

    name: Text
    arguments: Annotated[str | Object | None, Meta(description="the JSON of an object, as a string")] = None


class ToolCall(Struct):
    """A call of a tool, in an earlier answer."""

    function: CalledFunction
    type: Literal["function"] = "function"
    id: Text | None = None


class Message(Struct):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        str | Annotated[list[Annotated[TextPart, Meta(description="an object")]], Meta(max_length=64)] | None,
        Meta(description=_CONTENT),
    ] = None
    name: Text | None = None
    reasoning_content: Text | None = None
    """What the model thought before an earlier answer."""
    tool_calls: Annotated[
        list[Annotated[ToolCall, Meta(description="an object")]],
        Meta(max_length=128, description="a list of at most 128 calls"),
    ] = []
    tool_call_id: Text | None = None
    """The call that a tool's message answers."""
    function_call: Any = None
    """What OpenAI's API had before `tool_calls`."""
    audio: Any = None


Messages = Annotated[
    list[Annotated[Message, Meta(description="an object")]],
    Meta(min_length=1, max_length=2048, description="a list of 1 to 2048 messages"),
]


IGNORED_IN_MESSAGES = frozenset(
    f"messages.{name}" for name in ("annotations", "id", "refusal", "content.cache_control")
)
"""What clients commonly send in messages, and changes nothing here."""


def template_messages(messages: list[Message]) -> list[dict[str, Any]]:
    """The messages as templates read them. Raises `BadRequest`."""
    return [_template_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def ignored_in_messages(messages: list[dict[str, Any]]) -> Iterator[str]:
    """The fields of valid messages, and of their parts, that ask for something and have no effect."""
    for message in messages:
        for name, value in message.items():
            if name not in _MESSAGE_FIELDS and value not in (None, []):
                yield f"messages.{name}"
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            for name, value in part.items():
                if name not in _PART_FIELDS and value not in (None, []):
                    yield f"messages.content.{name}"


_MESSAGE_FIELDS = frozenset(Message.__struct_fields__)
_PART_FIELDS = frozenset(TextPart.__struct_fields__)


def _template_message(message: Message, place: str) -> dict[str, Any]:
    if message.function_call is not None:
        raise field_error(f"{place}.function_call", "this field is not supported; send tool_calls")
    if message.audio is not None:
        raise field_error(f"{place}.audio", "audio is not supported")
    is_assistant = message.role == "assistant"
    if message.tool_calls and not is_assistant:
        raise field_error(f"{place}.tool_calls", "only an assistant's message has calls")
    made: dict[str, Any] = {
        "role": template_role(message.role),
        "content": _text(message, f"{place}.content"),
    }
    if message.name is not None:
        made["name"] = message.name
    if is_assistant and message.reasoning_content is not None:
        made["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        made["tool_calls"] = [
            _template_call(call, f"{place}.tool_calls[{index}]")
            for index, call in enumerate(message.tool_calls)
        ]
    if message.role == "tool" and message.tool_call_id is not None:
        made["tool_call_id"] = message.tool_call_id
    return made


def _text(message: Message, place: str) -> str:
    """A message's content as one text. An assistant that only called tools, or thought, has said nothing."""
    content = message.content
    if not content and not isinstance(content, str):
        if message.role != "assistant":
            raise field_error(place, f"must be {_CONTENT}")
        return ""
    text = content if isinstance(content, str) else "".join(_part_texts(content, place))
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise field_error(place, "is not Unicode: it has half of a surrogate pair") from error
    return text


def _part_texts(parts: list[TextPart], place: str) -> Iterator[str]:
    for index, part in enumerate(parts):
        text = part.text if part.type == "text" else part.refusal
        if text is None:
            raise field_error(f"{place}[{index}].{part.type}", "is missing")
        yield text


def _template_call(call: ToolCall, place: str) -> dict[str, Any]:
    sent = call.function.arguments
    place = f"{place}.function.arguments"
    try:
        arguments = sent if isinstance(sent, dict) else json_arguments(sent or "")
    except ValueError as error:
        raise field_error(place, str(error)) from error
    check_json(arguments, place)
    return tool_call(call.id, call.function.name, arguments)
