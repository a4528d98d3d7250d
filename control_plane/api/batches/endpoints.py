"""The endpoints whose requests a batch may have."""

from collections.abc import Callable, Mapping
from typing import Any

from control_plane.api.generation import Asked, Formatter, Parser
from control_plane.api.openai.answers import CompletionFormat
from control_plane.api.openai.requests import parse_chat, parse_completion
from control_plane.api.responses.answers import ResponseFormat
from control_plane.api.responses.requests import parse_response
from control_plane.api.text.answer_format import AnswerFormat, AnswerHead

Endpoint = Callable[[Any, AnswerHead], AnswerFormat]
"""Reads a decoded body, and returns the form of its answer. Raises `BadRequest`."""


def _endpoint(parse: Parser[Asked], form: Formatter[Asked]) -> Endpoint:
    return lambda body, head: form(parse(body), head)


ENDPOINTS: Mapping[str, Endpoint] = {
    "/v1/chat/completions": _endpoint(parse_chat, CompletionFormat),
    "/v1/completions": _endpoint(parse_completion, CompletionFormat),
    "/v1/responses": _endpoint(parse_response, ResponseFormat),
}
