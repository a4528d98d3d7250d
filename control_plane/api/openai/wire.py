"""The JSON bodies that clients send: OpenAI's completions, and vLLM's /tokenize and /detokenize.

https://platform.openai.com/docs/api-reference. A field that is null counts as absent.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from msgspec import Meta, Struct

from control_plane.errors import BadRequest
from control_plane.validation import MAX_QUOTED, UNKNOWN_FIELD, Invalid, convert

MAX_TOKEN_IDS = 1_000_000
"""The most token ids of all prompts together."""
MAX_CHOICES = 128
"""The most answers to all prompts together."""
_MAX = (1 << 63) - 1
_LONG_LISTS = ("messages", "input", "system", "tools")
_UNICODE = r"\A[^\ud800-\udfff]*\Z"
"""Text without half a surrogate pair, which JSON can escape and UTF-8 cannot encode."""

Text = Annotated[str, Meta(pattern=_UNICODE, description="a string of Unicode")]
Natural = Annotated[int, Meta(ge=0, le=_MAX, description="a whole number of at least 0")]
Positive = Annotated[int, Meta(ge=1, le=_MAX, description="a whole number of at least 1")]
Choices = Annotated[int, Meta(ge=1, le=MAX_CHOICES, description=f"a whole number from 1 to {MAX_CHOICES}")]
Logprobs = Annotated[int, Meta(ge=0, le=20, description="a whole number from 0 to 20")]
TopK = Annotated[int, Meta(ge=-1, le=_MAX, description="a whole number of at least -1")]
Seed = Annotated[int, Meta(ge=-_MAX - 1, le=_MAX, description=f"a whole number from {-_MAX - 1} to {_MAX}")]
Temperature = Annotated[float, Meta(ge=0, le=2, description="a number from 0 to 2")]
Probability = Annotated[float, Meta(ge=0, le=1, description="a number from 0 to 1")]
# Numbers above 0: less than 1e-6 can leave float32's range.
TopP = Annotated[float, Meta(ge=1e-6, le=1, description="a number from 1e-06 to 1")]
Penalty = Annotated[float, Meta(ge=1e-6, le=10, description="a number from 1e-06 to 10")]
StopString = Annotated[str, Meta(min_length=1, max_length=1024, pattern=_UNICODE)]
StopStrings = Annotated[
    list[StopString],
    Meta(
        max_length=16,
        description="a string of 1 to 1024 Unicode characters, or a list of at most 16 of these",
    ),
]
TokenIds = Annotated[
    list[int], Meta(max_length=MAX_TOKEN_IDS, description=f"a list of at most {MAX_TOKEN_IDS} token ids")
]
Prompts = Annotated[
    str | Annotated[list[str | int | list[int]], Meta(max_length=MAX_TOKEN_IDS)],
    Meta(
        description="a string, a list of token ids, or a list of one of these, "
        f"with at most {MAX_TOKEN_IDS} token ids"
    ),
]


class _Object(Struct, forbid_unknown_fields=True):
    """A JSON object whose fields are all known."""


class TextPart(_Object):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


TextParts = Annotated[
    list[Annotated[TextPart, Meta(description="an object")]], Meta(min_length=1, max_length=64)
]


class Message(_Object):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str | TextParts, Meta(description="a string or a list of 1 to 64 text parts")]
    name: Text | None = None


Messages = Annotated[
    list[Annotated[Message, Meta(description="an object")]],
    Meta(min_length=1, max_length=2048, description="a list of 1 to 2048 messages"),
]


class StreamOptions(_Object):
    """How to stream an answer."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool = False
    """Accepted for compatibility; it has no effect."""


class Body(_Object):
    """The body of any request."""

    neutral: ClassVar[Mapping[str, tuple[object, ...]]] = {}
    """Fields that are not supported, each with the values that ask for nothing."""
    model: Text | None = None


class GenerationBody(Body):
    """The fields that chats and completions have in common."""

    neutral: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "frequency_penalty": (0,),
        "presence_penalty": (0,),
        "logit_bias": ({},),
    }
    n: Choices = 1
    stop: StopStrings = []
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: Probability | None = None
    repetition_penalty: Penalty | None = None
    seed: Seed | None = None
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool = False
    user: Text | None = None


class ChatBody(GenerationBody, kw_only=True):
    """The body of /v1/chat/completions."""

    neutral: ClassVar[Mapping[str, tuple[object, ...]]] = {
        **GenerationBody.neutral,
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
    messages: Messages
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    logprobs: bool = False
    top_logprobs: Logprobs | None = None


class CompletionBody(GenerationBody, kw_only=True):
    """The body of /v1/completions."""

    neutral: ClassVar[Mapping[str, tuple[object, ...]]] = {**GenerationBody.neutral, "suffix": ("",)}
    prompt: Prompts
    max_tokens: Natural = 16
    echo: bool = False
    best_of: Positive | None = None
    logprobs: Annotated[Logprobs | bool, Meta(description="a whole number from 0 to 20")] = False


class TokenizeBody(Body):
    """The body of /tokenize."""

    neutral: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "add_generation_prompt": (True,),
        "return_token_strs": (False,),
    }
    prompt: Text | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None


class DetokenizeBody(Body, kw_only=True):
    """The body of /detokenize."""

    tokens: TokenIds


AnyBody = TypeVar("AnyBody", bound=Body)


def decode_json(body: bytes) -> Any:
    """Decode a body. Raises `BadRequest`, also for an object that has a key twice."""
    try:
        return json.loads(body, object_pairs_hook=_object)
    # ValueError also covers invalid UTF-8 and numbers that are too long; RecursionError, lists too deep.
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A proxy that checks requests may read another of two values than this server does."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("an object has a key twice")
    return fields


def read_body(body: object, kind: type[AnyBody]) -> AnyBody:
    """Convert a decoded JSON body. Raises `BadRequest`, whose `param` is the field at fault."""
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    fields = _without_nulls(body)
    for name, neutral in kind.neutral.items():
        if name in fields and not _is_one_of(fields.pop(name), neutral):
            raise field_error(name, "this value is not supported; leave the field out")
    if "stream_options" in fields:
        fields["stream_options"] = _without_nulls(fields["stream_options"])
    if isinstance(messages := fields.get("messages"), list):
        fields["messages"] = [_without_nulls(message) for message in messages]
    # Not a union in the type: msgspec 0.22 crashes on a union of a list and a str with a pattern.
    if isinstance(stop := fields.get("stop"), str):
        fields["stop"] = [stop]
    try:
        return convert(fields, kind)
    except Invalid as error:
        if not error.path:
            raise BadRequest(f"the body {error.problem}") from error
        unknown = error.problem == UNKNOWN_FIELD
        problem = "this field is not supported" if unknown else error.problem
        path = error.path[:MAX_QUOTED]
        # The text names the place in long lists; elsewhere the field is enough.
        place = path if path.startswith(_LONG_LISTS) else path.partition("[")[0]
        raise field_error(place, problem) from error


def field_error(path: str, problem: str) -> BadRequest:
    """The error for the field at `path`; its `param` leaves out where in a list the fault is."""
    return BadRequest(f"{path}: {problem}", path.partition("[")[0])


def _without_nulls(value: Any) -> Any:
    """Leave out an object's null fields; return other values unchanged."""
    if not isinstance(value, dict):
        return value
    return {name: field for name, field in value.items() if field is not None}


def _is_one_of(value: object, neutral: tuple[object, ...]) -> bool:
    # In Python, unlike in JSON, 0 equals false.
    return any(value == good and isinstance(value, bool) == isinstance(good, bool) for good in neutral)
