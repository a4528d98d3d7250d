"""What a client asks for: the bodies of OpenAI's completions, and of vLLM's /tokenize and /detokenize.

https://platform.openai.com/docs/api-reference. Every parser raises `BadRequest`, which names the field.
"""

from dataclasses import dataclass
from typing import Any

from control_plane.api.openai import fields as known
from control_plane.api.openai.fields import MAX_INTEGER, Fields, is_unicode
from control_plane.api.openai.messages import Chat, parse_messages
from control_plane.engine.sequence import SamplingParams
from control_plane.errors import UnknownModel

DEFAULT_COMPLETION_TOKENS = 16
MAX_PROMPTS = 256
MAX_TOKEN_IDS = 1_000_000
"""Of all prompts together."""
MAX_CHOICES = 128
MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1024
_ALMOST_ZERO = 1e-6
"""For numbers above 0: less can leave float32's range."""


Prompt = str | list[int] | Chat
"""Text, token ids, or a chat."""


@dataclass(frozen=True)
class GenerationRequest:
    """What both kinds of completion ask for: `n` answers to each prompt."""

    prompts: tuple[Prompt, ...]
    max_tokens: int | None
    """For each answer; None leaves it to the server."""
    n: int
    stop: tuple[str, ...]
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    seed: int | None
    ignore_eos: bool
    logprobs: int | None
    """How many of the likeliest tokens to report with each; None for no report."""
    echo: bool
    """Whether an answer begins with its prompt."""
    stream: bool
    include_usage: bool
    """Whether a stream ends with its usage."""
    continuous_usage: bool
    """Whether every chunk tells the usage so far."""
    return_token_ids: bool
    """Whether each choice, or chunk of one, tells its tokens' ids."""
    user: str | None

    @property
    def is_chat(self) -> bool:
        """Whether the answer is a message, too."""
        return isinstance(self.prompts[0], Chat)

    def sampling_params(self, max_tokens: int, choice: int) -> SamplingParams:
        """The engine's view of a prompt's answer number `choice`: a seed makes them differ, and repeat."""
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=None if self.seed is None else (self.seed + choice) % (MAX_INTEGER + 1),
            ignore_eos=self.ignore_eos,
            logprobs=self.logprobs,
            prompt_logprobs=self.echo and self.logprobs is not None,
        )


@dataclass(frozen=True)
class TokenizeRequest:
    """A prompt whose tokens are asked for."""

    prompt: Prompt
    add_special_tokens: bool


def parse_chat(body: Any, model: str) -> GenerationRequest:
    """Read the body of /v1/chat/completions."""
    fields = _served(Fields(body, known.CHAT), model)
    limits = [fields.integer(name, 1) for name in ("max_completion_tokens", "max_tokens")]
    return _request(
        fields,
        prompts=(parse_messages(fields.raw("messages")),),
        max_tokens=next((limit for limit in limits if limit is not None), None),
        logprobs=_chat_logprobs(fields),
    )


def parse_completion(body: Any, model: str) -> GenerationRequest:
    """Read the body of /v1/completions."""
    fields = _served(Fields(body, known.COMPLETION), model)
    max_tokens = fields.integer("max_tokens", 0 if fields.flag("echo") else 1)
    request = _request(
        fields,
        prompts=_prompts(fields),
        max_tokens=DEFAULT_COMPLETION_TOKENS if max_tokens is None else max_tokens,
        logprobs=None if fields.raw("logprobs") is False else fields.integer("logprobs", 0, MAX_LOGPROBS),
    )
    if fields.integer("best_of", 1) not in (None, 1, request.n):
        raise fields.error("best_of", "is not supported beyond n")
    return request


def parse_tokenize(body: Any, model: str) -> TokenizeRequest:
    """Read the body of /tokenize: a prompt that is a string, or messages."""
    fields = _served(Fields(body, known.TOKENIZE), model)
    text = fields.text("prompt")
    if (text is None) == ("messages" not in fields):
        raise fields.error("prompt", "either it or messages must be there")
    prompt = parse_messages(fields.raw("messages")) if text is None else text
    if text is None and fields.raw("add_special_tokens") is True:
        raise fields.error("add_special_tokens", "the chat template adds them to messages")
    return TokenizeRequest(prompt, fields.flag("add_special_tokens", True))


def parse_detokenize(body: Any, model: str) -> list[int]:
    """Read the body of /detokenize: token ids."""
    fields = _served(Fields(body, known.DETOKENIZE), model)
    tokens = fields.raw("tokens")
    if not isinstance(tokens, list):
        raise fields.error("tokens", "must be a list of token ids")
    _check_token_ids(fields, "tokens", [tokens])
    return tokens


def _served(fields: Fields, model: str) -> Fields:
    """The fields, if they name no other model."""
    asked = fields.text("model")
    if asked is not None and asked != model:
        raise UnknownModel(asked, model)
    return fields


def _request(
    fields: Fields, *, prompts: tuple[Prompt, ...], max_tokens: int | None, logprobs: int | None
) -> GenerationRequest:
    top_k, seed = fields.integer("top_k", -1), fields.integer("seed", -MAX_INTEGER - 1)
    include_usage, continuous_usage = _stream_options(fields)
    return GenerationRequest(
        prompts=prompts,
        max_tokens=max_tokens,
        n=fields.integer("n", 1, max(MAX_CHOICES // len(prompts), 1)) or 1,
        stop=_stop(fields),
        temperature=fields.number("temperature", 1.0, 0.0, 2.0),
        top_p=fields.number("top_p", 1.0, _ALMOST_ZERO, 1.0),
        top_k=max(top_k or 0, 0),
        min_p=fields.number("min_p", 0.0, 0.0, 1.0),
        repetition_penalty=fields.number("repetition_penalty", 1.0, _ALMOST_ZERO, 10.0),
        seed=None if seed is None else seed % (MAX_INTEGER + 1),
        ignore_eos=fields.flag("ignore_eos"),
        logprobs=logprobs,
        echo=fields.flag("echo"),
        stream=fields.flag("stream"),
        include_usage=include_usage,
        continuous_usage=continuous_usage,
        return_token_ids=fields.flag("return_token_ids"),
        user=fields.text("user"),
    )


def _stream_options(fields: Fields) -> tuple[bool, bool]:
    """(include_usage, continuous_usage_stats)."""
    if "stream_options" not in fields:
        return False, False
    options = Fields(fields.raw("stream_options"), known.STREAM_OPTIONS, within="stream_options")
    if not fields.flag("stream"):
        raise fields.error("stream_options", "is only for a request that streams")
    return options.flag("include_usage"), options.flag("continuous_usage_stats")


def _stop(fields: Fields) -> tuple[str, ...]:
    value = fields.raw("stop")
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(stops, list):
        raise fields.error("stop", "must be a string or a list of strings")
    bound = f"at most {MAX_STOPS} strings of 1 to {MAX_STOP_CHARACTERS} characters"
    if len(stops) > MAX_STOPS:
        raise fields.error("stop", bound)
    if not all(isinstance(stop, str) for stop in stops):
        raise fields.error("stop", "must be a string or a list of strings")
    if not all(1 <= len(stop) <= MAX_STOP_CHARACTERS for stop in stops):
        raise fields.error("stop", bound)
    if not all(map(is_unicode, stops)):
        raise fields.error("stop", "is not Unicode: it has half of a surrogate pair")
    return tuple(stops)


def _chat_logprobs(fields: Fields) -> int | None:
    wanted, top = fields.flag("logprobs"), fields.integer("top_logprobs", 0, MAX_LOGPROBS)
    if top and not wanted:
        raise fields.error("top_logprobs", "is only for a request with logprobs true")
    return (top or 0) if wanted else None


def _prompts(fields: Fields) -> tuple[Prompt, ...]:
    value = fields.raw("prompt")
    prompts = value if isinstance(value, list) and value and isinstance(value[0], str | list) else [value]
    if len(prompts) > MAX_PROMPTS:
        raise fields.error("prompt", f"must be at most {MAX_PROMPTS} prompts")
    kinds = set(map(type, prompts))
    if kinds not in ({str}, {list}):
        raise fields.error("prompt", "must be a string, a list of token ids, or a list of one of these")
    if kinds == {list}:
        _check_token_ids(fields, "prompt", prompts)
    if not all(prompts):
        raise fields.error("prompt", "it is empty")
    return tuple(prompts)


def _check_token_ids(fields: Fields, name: str, lists: list[list[Any]]) -> None:
    """Whether they are whole numbers, and not too many; the vocabulary is not known here."""
    if sum(map(len, lists)) > MAX_TOKEN_IDS:
        raise fields.error(name, f"must be at most {MAX_TOKEN_IDS} token ids")
    if not all(set(map(type, token_ids)) <= {int} for token_ids in lists):
        raise fields.error(name, "must be a list of token ids")
