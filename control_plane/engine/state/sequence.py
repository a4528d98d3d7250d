"""A sequence of tokens, a prompt and its answer, and the parameters that it is sampled with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

from control_plane.engine.grammar.matcher import Matcher
from control_plane.faas.invocation import ExpertUsage


class FinishReason(StrEnum):
    """Why a sequence has ended, as OpenAI's API names it."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    """It stopped after calls of tools. The engine does not know of them: `api/text` says so."""


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen. `temperature` 0 is greedy; the other defaults exclude no token."""

    max_tokens: int
    """0 computes the prompt alone, for its log-probabilities."""
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    """Smallest probability of a token, as a share of the likeliest token's."""
    repetition_penalty: float = 1.0
    """Divides positive logits of tokens that the sequence already has, and multiplies negative ones."""
    frequency_penalty: float = 0.0
    """Taken off a token's logit for each time that the answer has it."""
    presence_penalty: float = 0.0
    """Taken off the logit of each token that the answer has."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of tokens, by their ids."""
    min_tokens: int = 0
    """Until the answer has so many tokens, no token ends it."""
    stop_token_ids: frozenset[int] = frozenset()
    """Tokens that end the answer, besides the model's own."""
    seed: int | None = None
    ignore_eos: bool = False
    """Whether the answer continues after an end-of-sequence token."""
    logprobs: int | None = None
    """Number of likeliest tokens to report with each token; 0 reports the token alone, None nothing."""
    prompt_logprobs: bool = False
    """Whether to report log-probabilities of the prompt's tokens as well."""

    @cached_property
    def changes_logits(self) -> bool:
        """Whether the model's logits change before temperature and the like apply."""
        return self.penalises or bool(self.logit_bias) or self.min_tokens > 0

    @cached_property
    def penalises(self) -> bool:
        """Whether tokens that the sequence already has become less likely, or more."""
        return (self.repetition_penalty, self.frequency_penalty, self.presence_penalty) != (1, 0, 0)

    def end_ids(self, eos_ids: frozenset[int]) -> frozenset[int]:
        """The tokens that end the answer; `eos_ids` are the model's own."""
        return self.stop_token_ids if self.ignore_eos else self.stop_token_ids | eos_ids


@dataclass(frozen=True)
class TokenLogprob:
    """A token's log-probability (natural logarithm), before temperature and other parameters apply."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens at the same position and their log-probabilities, in descending order."""


@dataclass(frozen=True)
class Generated:
    """The token that one step added to a sequence."""

    token_id: int | None
    """The generated token; None at the end of a sequence with `max_tokens` 0."""
    logprob: TokenLogprob | None = None
    finish_reason: FinishReason | None = None


@dataclass(eq=False)
class Sequence:
    """The tokens of a prompt, followed by those generated so far."""

    request_id: str
    tenant: str
    token_ids: list[int] = field(repr=False)
    """Left out of `repr`, so that no log has what a tenant wrote."""
    params: SamplingParams
    weight: float = 1.0
    """The tenant's weight: twice the weight gets twice the service."""
    prompt_key: object | None = None
    """Sequences of a tenant that have the same object here have the same prompt, and compute it once."""
    cache_salt: str = ""
    """It continues only from what sequences of its tenant with the same salt have computed."""
    stops: tuple[int, ...] = ()
    """Numbers of its first tokens that later prompts are likely to begin with, ascending: where memory cannot
    be cut, what belongs to these is kept beside what belongs to all."""
    background: bool = False
    """Whether it runs only while no other sequences do, apart from those in the background."""
    num_prompt_tokens: int = 0
    num_computed: int = 0
    """Tokens whose keys and values are in the KV cache. Changes only when a step has succeeded, or when they
    are copied from a sequence with the same prompt."""
    num_charged: int = 0
    """Tokens that the tenant's counter was charged for, here or where they were copied from. Computing them
    again is free."""
    num_cached: int = 0
    """Tokens that it had without computing them when it began."""
    prefix_uses: int = 0
    """The number of sequences that have had a part of what it continues from."""
    stalls: bool = False
    """Whether it has held up other sequences: it was next, and there was not enough memory for it."""
    started: float | None = None
    """`time.monotonic()` at the start of its first step; None before that."""
    usage: ExpertUsage = field(default_factory=ExpertUsage)
    """The cost of its expert calls: its share, by rows, of each step that it took part in."""
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    """Log-probabilities from the prompt's second token on; complete before the first generated token."""
    finish_reason: FinishReason | None = None
    matcher: Matcher | None = None
    """Follows the grammar that the answer has to match; None for an answer without one."""

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.token_ids)

    @property
    def max_length(self) -> int:
        """Tokens of the prompt and of the longest possible answer."""
        return self.num_prompt_tokens + self.params.max_tokens

    @property
    def num_uncomputed(self) -> int:
        """Tokens still to be computed: the rest of the prompt, or the last generated token."""
        return len(self.token_ids) - self.num_computed

    @property
    def num_output_tokens(self) -> int:
        """The number of generated tokens."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def output_ids(self) -> list[int]:
        """The generated tokens."""
        return self.token_ids[self.num_prompt_tokens :]

    def append(self, token_id: int, eos_ids: frozenset[int]) -> None:
        """Append a generated token, and set `finish_reason` if it ends the answer.

        Before `min_tokens`, the sampler chooses no token that ends it, unless no other is possible.
        """
        self.token_ids.append(token_id)
        # A grammar allows an end token only where it is complete.
        if token_id in self.params.end_ids(eos_ids) or (self.matcher and token_id in eos_ids):
            self.finish_reason = FinishReason.STOP
        elif len(self.token_ids) >= self.max_length:
            self.finish_reason = FinishReason.LENGTH
