"""A request for text in the terms of the engine, whichever API it came by."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from control_plane.engine.state.sequence import SamplingParams

MAX_SEED = (1 << 63) - 1


@dataclass(frozen=True)
class Chat:
    """A chat, as chat templates read it. All values are JSON's, and their text is valid Unicode."""

    messages: list[dict[str, Any]]
    """Each has a role and a content, perhaps a name, `tool_calls`, `tool_call_id` or `reasoning_content`.

    A tool call's arguments are an object here, as templates expect, and not JSON in a string.
    """
    tools: list[dict[str, Any]] | None = None
    """In OpenAI's form: `{"type": "function", "function": {"name", "description", "parameters"}}`."""
    documents: list[dict[str, Any]] | None = None
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    """What else the template sees, such as `enable_thinking`."""
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    """Whether the answer continues the last message."""


Prompt = str | list[int] | Chat
"""Text, token ids, or a chat."""


@dataclass(frozen=True)
class Structure:
    """What an answer's text has to match."""

    kind: Literal["json_object", "json_schema", "regex", "choice", "grammar"]
    field: str
    """The request's field that it comes from, for errors."""
    value: Any = None
    """The schema as a JSON value, the regular expression, the list of choices, or the grammar's text.

    A grammar is in llguidance's dialect of Lark, or in GBNF. In Lark, `%json {...}` is a text that matches a
    JSON schema, and `<|name|>` or `<[id]>` is a special token. So a call of a tool in a model's own format is
    a grammar, too: `start: "<tool_call>" %json {...} "</tool_call>"`. A token that is no special one is text.
    """


@dataclass(frozen=True)
class ToolUse:
    """The tools that an answer may call, and whether it has to."""

    tools: tuple[Mapping[str, Any], ...]
    """As in `Chat.tools`."""
    choice: Literal["auto", "required"] | str = "auto"
    """"required" is at least one call of any tool; another string is one call of the tool with that name."""
    parallel: bool = True
    """Whether the answer may call several."""

    @property
    def has_to_call(self) -> bool:
        """Whether the answer is nothing but calls."""
        return self.choice != "auto"


@dataclass(frozen=True)
class SamplingDefaults:
    """How tokens are chosen where a request does not say. These values change no probability."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """The number of likeliest tokens to sample from; 0 for all."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, as far as a request says: see `SamplingDefaults`."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None

    def filled(self, defaults: SamplingDefaults) -> dict[str, Any]:
        """Every value, by name."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return {**asdict(defaults), **given}


@dataclass(frozen=True)
class GenerationRequest:
    """A request for `n` answers to each of its prompts. A field's default asks for nothing."""

    prompts: tuple[Prompt, ...]
    max_tokens: int | None
    """The limit for each answer; None leaves it to the server."""
    sampling: Sampling
    n: int = 1
    stop: tuple[str, ...] = ()
    seed: int | None = None
    """The seed, from 0 to `MAX_SEED`; None is random."""
    ignore_eos: bool = False
    logprobs: int | None = None
    """How many of the likeliest tokens to report with each token; None for no report."""
    echo: bool = False
    """Whether an answer begins with its prompt."""
    stream: bool = False
    include_usage: bool = False
    """Whether a stream of OpenAI's chats and completions ends with the usage; other APIs' always do."""
    continuous_usage: bool = False
    """Whether every chunk of a stream reports the usage so far."""
    return_token_ids: bool = False
    """Whether each choice, or each chunk of one, reports the ids of its tokens."""
    user: str | None = None
    cache_salt: str = ""
    """Answers continue only from what requests of the tenant with the same one have computed."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    skip_special_tokens: bool = True
    """Whether special tokens have no text in an answer."""
    include_stop: bool = False
    """Whether an answer includes the stop string that has ended it."""
    add_special_tokens: bool = True
    """Whether to add the tokenizer's special tokens to a prompt that is text."""
    structure: Structure | None = None
    tool_use: ToolUse | None = None
    ignored_fields: tuple[str, ...] = ()
    """The names of fields that the client sent and that have no effect, such as "metadata"."""

    @property
    def is_chat(self) -> bool:
        """Whether the prompt is a chat, and the answer a message."""
        return isinstance(self.prompts[0], Chat)

    @property
    def begins_message(self) -> bool:
        """Whether the answer is a new message, rather than the end of a text in the prompt."""
        prompt = self.prompts[0]
        return isinstance(prompt, Chat) and not prompt.continue_final_message

    def sampling_params(self, max_tokens: int, choice: int, defaults: SamplingDefaults) -> SamplingParams:
        """The engine's parameters for answer number `choice` to a prompt.

        What the request does not name is the model's default. Each answer has its own seed, derived from the
        request's: the answers differ, and can be repeated.
        """
        return SamplingParams(
            max_tokens=max_tokens,
            **self.sampling.filled(defaults),
            logit_bias=self.logit_bias,
            min_tokens=self.min_tokens,
            stop_token_ids=self.stop_token_ids,
            seed=None if self.seed is None else (self.seed + choice) % (MAX_SEED + 1),
            ignore_eos=self.ignore_eos,
            logprobs=self.logprobs,
            prompt_logprobs=self.echo and self.logprobs is not None,
        )


@dataclass(frozen=True)
class TokenizeRequest:
    """A request for the tokens of a prompt."""

    prompt: Prompt
    add_special_tokens: bool = True
    """Whether to add the tokenizer's special tokens to a text. A chat template writes its own."""
    ignored_fields: tuple[str, ...] = ()
    """See `GenerationRequest`."""


@dataclass(frozen=True)
class DetokenizeRequest:
    """A request for the text of tokens."""

    token_ids: list[int]
    ignored_fields: tuple[str, ...] = ()
    """See `GenerationRequest`."""
