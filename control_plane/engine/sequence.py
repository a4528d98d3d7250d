"""One prompt on its way to becoming an answer."""

from dataclasses import dataclass, field
from enum import StrEnum

from control_plane.faas.invocation import ExpertUsage


class FinishReason(StrEnum):
    """Why a sequence has ended, in OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True)
class SamplingParams:
    """How a next token is chosen: `temperature` 0 is greedy; the other defaults leave all tokens in."""

    max_tokens: int
    """May be 0: the prompt alone is computed, for its log-probabilities."""
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    """Least probability of a token, as a share of the likeliest one's."""
    repetition_penalty: float = 1.0
    """Divides the positive logits of tokens that are there already, and multiplies the negative ones."""
    seed: int | None = None
    ignore_eos: bool = False
    """Whether the answer goes on after an end-of-sequence token."""
    logprobs: int | None = None
    """How many of the likeliest tokens to report with each; 0 for the chosen one alone, None for nothing."""
    prompt_logprobs: bool = False
    """Whether to report on the prompt's tokens, too."""


@dataclass(frozen=True)
class TokenLogprob:
    """How likely a token was, in natural logarithms, before temperature and the like were applied."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens at its place and their log-probabilities, falling."""


@dataclass(frozen=True)
class Generated:
    """What one step added to a sequence."""

    token_id: int | None
    """None at the end of a sequence that was to generate nothing."""
    logprob: TokenLogprob | None = None
    finish_reason: FinishReason | None = None


@dataclass(eq=False)
class Sequence:
    """The tokens of one answer: the prompt's, then the generated ones."""

    request_id: str
    tenant: str
    token_ids: list[int] = field(repr=False)
    """Not in what is logged of it: they are what a tenant wrote."""
    params: SamplingParams
    weight: float = 1.0
    """The tenant's, when tenants compete: twice the weight is twice the service."""
    num_prompt_tokens: int = 0
    num_computed: int = 0
    """Tokens whose keys and values are in the KV cache. Only a step that succeeded moves it."""
    num_charged: int = 0
    """Tokens that the tenant's counter has been charged for; computing them again is free."""
    stalls: bool = False
    """Whether it was its turn and there was no memory for it, so that others had to wait, too."""
    started: float | None = None
    """time.monotonic() of its first step."""
    usage: ExpertUsage = field(default_factory=ExpertUsage)
    """What calling experts for it has cost: its rows' share of the steps that it took part in."""
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    """Of the prompt's second token, and so on; whole before the first token is generated."""
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.token_ids)

    @property
    def max_length(self) -> int:
        """The most tokens that this sequence can come to."""
        return self.num_prompt_tokens + self.params.max_tokens

    @property
    def num_uncomputed(self) -> int:
        """Tokens that the model has still to see: the rest of the prompt, or the last generated one."""
        return len(self.token_ids) - self.num_computed

    @property
    def output_ids(self) -> list[int]:
        """The generated tokens."""
        return self.token_ids[self.num_prompt_tokens :]

    def append(self, token_id: int, eos_ids: frozenset[int]) -> None:
        """Take a generated token, and finish where it ends the answer."""
        self.token_ids.append(token_id)
        if token_id in eos_ids and not self.params.ignore_eos:
            self.finish_reason = FinishReason.STOP
        elif len(self.token_ids) >= self.max_length:
            self.finish_reason = FinishReason.LENGTH
