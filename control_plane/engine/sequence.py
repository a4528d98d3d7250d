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
    """How a next token is chosen: `temperature` 0 is greedy, `top_k` 0 and `top_p` 1 leave all tokens in."""

    max_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None


@dataclass(eq=False)
class Sequence:
    """The tokens of one request: the prompt's, then the generated ones."""

    request_id: str
    tenant: str
    token_ids: list[int]
    params: SamplingParams
    num_prompt_tokens: int = 0
    num_computed: int = 0
    """Tokens whose keys and values are in the KV cache. Only a step that succeeded moves it."""
    usage: ExpertUsage = field(default_factory=ExpertUsage)
    """What the steps that it took part in have cost: alone in its batch, that is its own cost."""
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
        if token_id in eos_ids:
            self.finish_reason = FinishReason.STOP
        elif len(self.token_ids) >= self.max_length:
            self.finish_reason = FinishReason.LENGTH
