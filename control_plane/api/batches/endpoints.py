"""The endpoints whose requests a batch may have: each with its parser, and with the form of its answers."""

from collections.abc import Callable, Mapping
from typing import Any

from control_plane.api.openai.answers import CompletionFormat
from control_plane.api.openai.requests import parse_chat, parse_completion
from control_plane.api.text.answer_format import AnswerFormat, AnswerHead
from control_plane.api.text.request import GenerationRequest

Endpoint = tuple[
    Callable[[Any, str], GenerationRequest], Callable[[GenerationRequest, AnswerHead], AnswerFormat]
]

ENDPOINTS: Mapping[str, Endpoint] = {
    "/v1/chat/completions": (parse_chat, CompletionFormat),
    "/v1/completions": (parse_completion, CompletionFormat),
}
