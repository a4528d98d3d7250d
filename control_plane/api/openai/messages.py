"""The messages of a chat, as OpenAI's API has them."""

from dataclasses import dataclass
from typing import Any

from control_plane.api.openai.fields import MAX_QUOTED, is_unicode
from control_plane.errors import BadRequest

MAX_MESSAGES = 2048
MAX_PARTS = 64
"""Of one message."""

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""Who may speak, and as what the chat template knows them."""


@dataclass(frozen=True)
class Chat:
    """The messages so far, each with a role, a content and perhaps a name."""

    messages: list[dict[str, str]]


def parse_messages(value: Any) -> Chat:
    """Read the field of that name. Raises `BadRequest`."""
    if not isinstance(value, list) or not value:
        raise BadRequest("messages: must be a list with at least one message", "messages")
    if len(value) > MAX_MESSAGES:
        raise BadRequest(f"messages: must be at most {MAX_MESSAGES} messages", "messages")
    return Chat([_message(message, f"messages[{number}]") for number, message in enumerate(value)])


def _message(value: Any, place: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise BadRequest(f"{place}: must be an object", "messages")
    message = {name: part for name, part in value.items() if part is not None}
    for name in message.keys() - {"role", "content", "name"}:
        raise BadRequest(f"{place}.{name[:MAX_QUOTED]}: this field is not supported", "messages")
    if message.get("role") not in tuple(_ROLES):
        raise BadRequest(f"{place}.role: must be one of {', '.join(_ROLES)}", "messages")
    name = message.get("name", "")
    if not isinstance(name, str) or not is_unicode(name):
        raise BadRequest(f"{place}.name: must be a string of Unicode", "messages")
    content = _content(message.get("content"), f"{place}.content")
    return {**message, "role": _ROLES[message["role"]], "content": content}


def _content(value: Any, place: str) -> str:
    """The text of a message, in one piece or in parts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise BadRequest(f"{place}: must be a string or a list of text parts", "messages")
    if len(value) > MAX_PARTS:
        raise BadRequest(f"{place}: must be at most {MAX_PARTS} parts", "messages")
    for number, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            told = f"{kind[:MAX_QUOTED]!r} is not supported" if isinstance(kind, str) else "it is missing"
            raise BadRequest(f"{place}[{number}].type: {told}, only 'text'", "messages")
        if part.keys() != {"type", "text"} or not isinstance(part["text"], str):
            raise BadRequest(f"{place}[{number}]: must have a type and a text, a string", "messages")
    return "".join(part["text"] for part in value)
