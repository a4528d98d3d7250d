"""Bodies of OpenAI's requests for text, which have what they must have, and any other fields."""

from typing import Any

import pytest

from control_plane.api.openai.requests import parse_chat, parse_completion
from control_plane.api.text.request import GenerationRequest
from control_plane.errors import BadRequest

HELLO = [{"role": "user", "content": "hello"}]


def chat(**body: Any) -> GenerationRequest:
    """What the body of a chat asks for."""
    return parse_chat({"messages": HELLO, **body})


def completion(**body: Any) -> GenerationRequest:
    """What the body of a completion asks for."""
    return parse_completion({"prompt": "hello", **body})


def refused(parse: Any, **body: Any) -> BadRequest:
    """Parse a body that must be refused. The message begins with the field's name."""
    with pytest.raises(BadRequest) as refusal:
        parse(**body)
    assert str(refusal.value).startswith(str(refusal.value.param))
    return refusal.value
