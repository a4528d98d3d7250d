"""How OpenAI's API tells an error."""

from typing import Any


def error_body(message: str, kind: str, param: str | None, code: str | None) -> dict[str, Any]:
    """The JSON object; `param` names the field at fault."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
