"""What a chat's template sees besides messages and tools."""

import re
from typing import Any

from control_plane.api.bodies.json_values import check_json
from control_plane.api.bodies.reading import field_error

MAX_VARIABLES = 64
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_FIELDS = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message")
"""Variables that have a field of their own."""


def template_variables(given: dict[str, Any], effort: str | None) -> dict[str, Any]:
    """The variables of `chat_template_kwargs`, and the effort, unless they name it. Raises `BadRequest`."""
    if len(given) > MAX_VARIABLES:
        raise field_error("chat_template_kwargs", f"must be at most {MAX_VARIABLES} variables")
    for name in given:
        if not _NAME.fullmatch(name):
            raise field_error(
                "chat_template_kwargs",
                "names must be 1 to 64 letters, digits and underscores, a letter first",
            )
        if name in _FIELDS:
            raise field_error("chat_template_kwargs", f"{name} is a field of the request, not a variable")
    check_json(given, "chat_template_kwargs")
    return {**({} if effort is None else {"reasoning_effort": effort}), **given}


def template_documents(documents: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """The documents that a template may cite; None without any. Raises `BadRequest`."""
    check_json(documents, "documents")
    return documents or None
