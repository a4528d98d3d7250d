"""Messages with fewer roles, for chat templates that are strict about their order."""

from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any

Message = dict[str, Any]
_SEPARATOR = "\n\n"


def simpler(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """The messages as a template may take them that refuses them as they are.

    First with the system's messages at the beginning only, then with none: the others become the user's.
    Messages of one role in a row become one, if they are text.
    """
    leading = sum(1 for _ in takewhile(_is_system, messages))
    for kept in dict.fromkeys((leading, 0)):
        yield _merged([*messages[:kept], *map(_from_user, messages[kept:])])


def _is_system(message: Message) -> bool:
    return message.get("role") == "system"


def _from_user(message: Message) -> Message:
    return {**message, "role": "user"} if _is_system(message) else message


def _merged(messages: Sequence[Message]) -> list[Message]:
    merged: list[Message] = []
    for message in messages:
        if merged and _is_text(message) and _is_text(merged[-1]) and message["role"] == merged[-1]["role"]:
            merged[-1] = {**message, "content": merged[-1]["content"] + _SEPARATOR + message["content"]}
        else:
            merged.append(message)
    return merged


def _is_text(message: Message) -> bool:
    return message.keys() == {"role", "content"} and isinstance(message["content"], str)
