"""The endpoints whose requests a batch may have: each with its parser, and with the form of its answers."""

from collections.abc import Mapping

from control_plane.api.generation import Formatter, Parser
from control_plane.api.openai.answers import CompletionFormat
from control_plane.api.openai.requests import parse_chat, parse_completion
from control_plane.api.text.request import GenerationRequest

Endpoint = tuple[Parser[GenerationRequest], Formatter[GenerationRequest]]

ENDPOINTS: Mapping[str, Endpoint] = {
    "/v1/chat/completions": (parse_chat, CompletionFormat),
    "/v1/completions": (parse_completion, CompletionFormat),
}
