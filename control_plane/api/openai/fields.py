"""Typed access to the fields of a request's JSON body."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from control_plane.errors import BadRequest

MAX_INTEGER = (1 << 63) - 1
MAX_QUOTED = 80
"""Characters of a client's own that an error repeats, at most."""

_COMMON = frozenset(
    {
        *("model", "max_tokens", "n", "stop", "temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
        *("seed", "ignore_eos", "logprobs", "stream", "stream_options", "user", "return_token_ids"),
    }
)
_COMMON_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
}
_CHAT_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    **_COMMON_NEUTRAL,
    "function_call": ("none", "auto"),
    "functions": ([],),
    "metadata": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
}


@dataclass(frozen=True)
class Schema:
    """Which fields an object may have."""

    known: frozenset[str]
    neutral: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Fields that are not supported, and the values with which they ask for nothing."""


CHAT = Schema(_COMMON | {"messages", "max_completion_tokens", "top_logprobs"}, _CHAT_NEUTRAL)
COMPLETION = Schema(_COMMON | {"prompt", "echo", "best_of"}, {**_COMMON_NEUTRAL, "suffix": ("",)})
STREAM_OPTIONS = Schema(
    frozenset({"include_usage", "continuous_usage_stats"}), {"include_obfuscation": (True, False)}
)
TOKENIZE = Schema(
    frozenset({"model", "prompt", "messages", "add_special_tokens"}),
    {"add_generation_prompt": (True,), "return_token_strs": (False,)},
)
DETOKENIZE = Schema(frozenset({"model", "tokens"}))


class Fields:
    """A body whose fields are all known. Null counts as absent. Every method raises `BadRequest`."""

    def __init__(self, body: Any, schema: Schema, within: str = "") -> None:
        """`within` names the field that the body is the value of, if it is not the whole one."""
        self._prefix = f"{within}." if within else ""
        if not isinstance(body, dict):
            message = f"{within}: must be an object" if within else "the body must be a JSON object"
            raise BadRequest(message, within or None)
        self._values = {name: value for name, value in body.items() if value is not None}
        for name in self._values:
            if name not in schema.known:
                self._refuse_unless_neutral(name, schema.neutral)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def error(self, name: str, problem: str) -> BadRequest:
        """What is wrong with a field."""
        param = self._prefix + name[:MAX_QUOTED]
        return BadRequest(f"{param}: {problem}", param)

    def raw(self, name: str) -> Any:
        """The value as it came; None where the field is absent."""
        return self._values.get(name)

    def text(self, name: str) -> str | None:
        """A string."""
        value = self.raw(name)
        if value is not None and not isinstance(value, str):
            raise self.error(name, "must be a string")
        if value is not None and not is_unicode(value):
            raise self.error(name, "is not Unicode: it has half of a surrogate pair")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """A boolean."""
        value = self._values.get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, "must be true or false")
        return value

    def integer(self, name: str, least: int, most: int = MAX_INTEGER) -> int | None:
        """A whole number in the range."""
        value = self.raw(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            limit = f"of at least {least}" if most == MAX_INTEGER else f"from {least} to {most}"
            raise self.error(name, f"must be a whole number {limit}")
        return value

    def number(self, name: str, default: float, least: float, most: float) -> float:
        """A number in the range."""
        value = self._values.get(name, default)
        # What is not a number lies in no range, either.
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise self.error(name, f"must be a number from {least:g} to {most:g}")
        return float(value)

    def _refuse_unless_neutral(self, name: str, neutral: Mapping[str, tuple[Any, ...]]) -> None:
        if name not in neutral:
            raise self.error(name, "this field is not supported")
        value = self._values[name]
        # 0 is False in Python, and not in JSON.
        same_kind = (good for good in neutral[name] if isinstance(value, bool) == isinstance(good, bool))
        if value not in same_kind:
            raise self.error(name, "this value is not supported; leave the field out")


def is_unicode(text: str) -> bool:
    """Whether no half of a surrogate pair stands alone in it: JSON can have one, and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
