"""A request for text in the terms of the engine, whichever API it came by."""

from dataclasses import dataclass

from control_plane.engine.state.sequence import SamplingParams

MAX_SEED = (1 << 63) - 1


@dataclass(frozen=True)
class Chat:
    """The messages of a chat, as chat templates read them: each has a role and a content, perhaps a name."""

    messages: list[dict[str, str]]


Prompt = str | list[int] | Chat
"""Text, token ids, or a chat."""


@dataclass(frozen=True)
class GenerationRequest:
    """A request for `n` answers to each of its prompts."""

    prompts: tuple[Prompt, ...]
    max_tokens: int | None
    """The limit for each answer; None leaves it to the server."""
    n: int
    stop: tuple[str, ...]
    temperature: float
    top_p: float
    top_k: int
    """The number of likeliest tokens to sample from; 0 for all."""
    min_p: float
    repetition_penalty: float
    seed: int | None
    """The seed, from 0 to `MAX_SEED`; None is random."""
    ignore_eos: bool
    logprobs: int | None
    """How many of the likeliest tokens to report with each token; None for no report."""
    echo: bool
    """Whether an answer begins with its prompt."""
    stream: bool
    include_usage: bool
    """Whether a stream ends with the request's usage."""
    continuous_usage: bool
    """Whether every chunk of a stream reports the usage so far."""
    return_token_ids: bool
    """Whether each choice, or each chunk of one, reports the ids of its tokens."""
    user: str | None

    @property
    def is_chat(self) -> bool:
        """Whether the prompt is a chat, and the answer a message."""
        return isinstance(self.prompts[0], Chat)

    def sampling_params(self, max_tokens: int, choice: int) -> SamplingParams:
        """The engine's parameters for answer number `choice` to a prompt.

        Each answer has its own seed, derived from the request's: the answers differ, and can be repeated.
        """
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=None if self.seed is None else (self.seed + choice) % (MAX_SEED + 1),
            ignore_eos=self.ignore_eos,
            logprobs=self.logprobs,
            prompt_logprobs=self.echo and self.logprobs is not None,
        )


@dataclass(frozen=True)
class TokenizeRequest:
    """A request for the tokens of a prompt."""

    prompt: Prompt
    add_special_tokens: bool
    """Whether to add the tokenizer's special tokens to a text. A chat template writes its own."""
