"""A chat as the process that renders it gets it: checked, and in JSON."""

import json
from typing import Any

from control_plane.api.text.request import Chat
from control_plane.api.text.worker.messages import EncodeChat
from control_plane.errors import BadRequest

MAX_DEPTH = 64
"""Lists and objects within each other, with the one that holds all fields."""
MAX_BYTES = 16 << 20
_OWN_FIELDS = frozenset({"messages", "tools", "documents", "add_generation_prompt"})


def chat_request(chat: Chat, template: str) -> EncodeChat:
    """The request to render the chat with a template.

    Raises `BadRequest` for values that are too deep or too large, for text that is not Unicode, and for
    variables that have a field of their own.
    """
    if taken := sorted(_OWN_FIELDS & chat.template_variables.keys()):
        raise BadRequest(f"chat_template_kwargs: {taken[0]} is a field of its own", "chat_template_kwargs")
    variables = {
        **chat.template_variables,
        "messages": chat.messages,
        "tools": chat.tools,
        "documents": chat.documents,
        # A message that goes on has no other one behind it.
        "add_generation_prompt": chat.add_generation_prompt and not chat.continue_final_message,
    }
    return EncodeChat(template, _json(variables), chat.continue_final_message)


def check_unicode(text: str) -> None:
    """Raises `BadRequest` for half of a surrogate pair, which JSON can escape."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(f"the text is not Unicode: {error}") from error


def _json(variables: dict[str, Any]) -> bytes:
    if _is_deeper(variables, MAX_DEPTH):
        raise BadRequest(f"messages: more than {MAX_DEPTH} lists and objects within each other", "messages")
    try:
        data = json.dumps(variables, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise BadRequest(f"the text is not Unicode: {error}") from error
    if len(data) > MAX_BYTES:
        raise BadRequest(f"messages: they have {len(data)} bytes, and {MAX_BYTES} are allowed", "messages")
    return data


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether a value has more than `depth` lists and objects within each other, itself included."""
    level = [value]
    for _ in range(depth):
        children = (each.values() if isinstance(each, dict) else each for each in level)
        level = [child for each in children for child in each if isinstance(child, dict | list)]
        if not level:
            return False
    return True
