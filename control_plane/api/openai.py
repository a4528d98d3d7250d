"""OpenAI's request and answer bodies. https://platform.openai.com/docs/api-reference"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from control_plane.engine.sequence import FinishReason, SamplingParams
from control_plane.errors import BadRequest

DEFAULT_COMPLETION_TOKENS = 16
DEFAULT_TENANT = "default"

_COMMON = frozenset(
    {
        *("model", "max_tokens", "temperature", "top_p", "top_k", "seed"),
        *("stream", "stream_options", "user", "n"),
    }
)
_CHAT = _COMMON | {"messages", "max_completion_tokens"}
_COMPLETION = _COMMON | {"prompt"}


@dataclass(frozen=True)
class Chat:
    """The messages so far, each with a role and a content."""

    messages: list[dict[str, str]]


@dataclass(frozen=True)
class GenerationRequest:
    """What both kinds of completion ask for."""

    prompt: str | list[int] | Chat
    """Text, token ids, or a chat."""
    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    stream: bool
    include_usage: bool
    tenant: str

    @property
    def is_chat(self) -> bool:
        """Whether the answer is a message, too."""
        return isinstance(self.prompt, Chat)

    def sampling_params(self, max_tokens: int) -> SamplingParams:
        """The engine's view of it."""
        return SamplingParams(max_tokens, self.temperature, self.top_k, self.top_p, self.seed)


def parse_chat(body: Mapping[str, Any], model: str) -> GenerationRequest:
    """Read the body of /v1/chat/completions. Raises `BadRequest`."""
    fields = _Fields(body, _CHAT, model)
    limits = ("max_completion_tokens", "max_tokens")
    max_tokens = next(
        (value for name in limits if (value := fields.integer(name, None, 1)) is not None), None
    )
    return _request(fields, _messages(body.get("messages")), max_tokens)


def parse_completion(body: Mapping[str, Any], model: str) -> GenerationRequest:
    """Read the body of /v1/completions. Raises `BadRequest`."""
    fields = _Fields(body, _COMPLETION, model)
    max_tokens = fields.integer("max_tokens", DEFAULT_COMPLETION_TOKENS, 1)
    return _request(fields, _prompt(body.get("prompt")), max_tokens)


def _request(fields: "_Fields", prompt: str | list[int] | Chat, max_tokens: int | None) -> GenerationRequest:
    if fields.integer("n", 1, 1) != 1:
        raise BadRequest("n: only one answer a request is supported", "n")
    return GenerationRequest(
        prompt=prompt,
        max_tokens=max_tokens,
        temperature=fields.number("temperature", 1.0, 0.0, 100.0),
        top_p=fields.number("top_p", 1.0, 1e-6, 1.0),
        top_k=fields.integer("top_k", 0, 0) or 0,
        seed=fields.integer("seed", None, 0),
        stream=fields.flag("stream"),
        include_usage=bool(fields.mapping("stream_options").get("include_usage")),
        tenant=fields.text("user", DEFAULT_TENANT),
    )


class _Fields:
    """Typed access to a body's fields; null means absent."""

    def __init__(self, body: Mapping[str, Any], known: frozenset[str], model: str) -> None:
        if not isinstance(body, dict):
            raise BadRequest("the body must be a JSON object")
        self._body = {name: value for name, value in body.items() if value is not None}
        for name in self._body:
            if name not in known:
                raise BadRequest(f"{name}: this field is not supported", name)
        if self.text("model", model) != model:
            raise BadRequest(f"model: there is no model {self._body['model']!r}, only {model!r}", "model")

    def text(self, name: str, default: str) -> str:
        value = self._body.get(name, default)
        if not isinstance(value, str) or not value:
            raise BadRequest(f"{name}: must be a string", name)
        return value

    def flag(self, name: str) -> bool:
        value = self._body.get(name, False)
        if not isinstance(value, bool):
            raise BadRequest(f"{name}: must be true or false", name)
        return value

    def mapping(self, name: str) -> Mapping[str, Any]:
        value = self._body.get(name, {})
        if not isinstance(value, dict):
            raise BadRequest(f"{name}: must be an object", name)
        return value

    def integer(self, name: str, default: int | None, least: int) -> int | None:
        value = self._body.get(name, default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 1 << 63:
            raise BadRequest(f"{name}: must be a whole number of at least {least}", name)
        return value

    def number(self, name: str, default: float, least: float, most: float) -> float:
        value = self._body.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise BadRequest(f"{name}: must be a number from {least:g} to {most:g}", name)
        return float(value)


def _messages(messages: Any) -> Chat:
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages: must be a list with at least one message", "messages")
    for message in messages:
        good = isinstance(message, dict) and all(
            isinstance(message.get(key), str) for key in ("role", "content")
        )
        if not good or set(message) - {"role", "content", "name"}:
            raise BadRequest("messages: each needs a role and a content, both strings", "messages")
    return Chat(messages)


def _prompt(prompt: Any) -> str | list[int]:
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        return prompt
    raise BadRequest("prompt: must be a string or a list of token ids", "prompt")


@dataclass(frozen=True)
class CompletionFormat:
    """The bodies of one answer, whole or in chunks."""

    id: str
    model: str
    is_chat: bool

    def whole(
        self, text: str, finish_reason: FinishReason | None, usage: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The answer of a request that does not stream."""
        content = {"message": {"role": "assistant", "content": text}} if self.is_chat else {"text": text}
        name = "chat.completion" if self.is_chat else "text_completion"
        return self._body(name, [self._choice(content, finish_reason)], usage=usage)

    def chunk(self, text: str, finish_reason: FinishReason | None = None) -> dict[str, Any]:
        """One event of a stream."""
        ends_without_text = finish_reason and not text
        delta = {} if ends_without_text else {"role": "assistant", "content": text}
        content: dict[str, Any] = {"delta": delta} if self.is_chat else {"text": text}
        return self._body(self._chunk_name, [self._choice(content, finish_reason)])

    def usage_chunk(self, usage: Mapping[str, Any]) -> dict[str, Any]:
        """The event that ends a stream whose client asked for usage."""
        return self._body(self._chunk_name, [], usage=usage)

    @property
    def _chunk_name(self) -> str:
        return "chat.completion.chunk" if self.is_chat else "text_completion"

    def _choice(self, content: Mapping[str, Any], finish_reason: FinishReason | None) -> dict[str, Any]:
        return {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}

    def _body(self, name: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": name,
            "created": int(time.time()),
            "model": self.model,
            "choices": choices,
            **more,
        }


def error_body(message: str, kind: str, param: str | None, code: str | None) -> dict[str, Any]:
    """OpenAI's error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
