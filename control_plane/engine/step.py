"""Computes one step: a batch through the model and the sampler. It changes no sequence."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from control_plane.engine.model.runner import ModelRunner, all_logits
from control_plane.engine.model.sampler import Sampler, token_logprobs
from control_plane.engine.scheduling.chunk import Chunk
from control_plane.engine.state.sequence import Sequence, TokenLogprob
from control_plane.engine.state.stopwatch import StepPart


@dataclass(frozen=True)
class StepResult:
    """The outcome of a step for one of its sequences."""

    sequence: Sequence
    prompt_logprobs: list[TokenLogprob]
    """Log-probabilities of the prompt tokens that follow the chunk's tokens, if they were asked for."""
    is_last: bool
    """Whether the chunk reached the sequence's end, so that the next token is known."""
    token_id: int | None
    """The next token; None if there is none to generate, or if `Sampler.sample` has none."""
    logprob: TokenLogprob | None


@dataclass(frozen=True)
class Step:
    """Runs batches through the model and the sampler."""

    runner: ModelRunner
    sampler: Sampler

    def run(self, batch: list[Chunk]) -> list[StepResult]:
        """A result for each chunk.

        Raises `RowsFailed` when an expert function cannot be called, and `Interrupted`.
        """
        hidden_states = self.runner.run(batch)
        tokens = dict(self._next_tokens(hidden_states, batch))
        results = []
        row = 0
        for chunk in batch:
            rows = hidden_states[row : row + chunk.length]
            row += chunk.length
            token_id, logprob = tokens.get(chunk.sequence, (None, None))
            prompt_logprobs = list(self._prompt_logprobs(rows, chunk))
            results.append(StepResult(chunk.sequence, prompt_logprobs, chunk.is_last, token_id, logprob))
        self.runner.stopwatch.lap(StepPart.SAMPLE)
        return results

    def _next_tokens(
        self, hidden_states: NDArray[Any], batch: list[Chunk]
    ) -> Iterator[tuple[Sequence, tuple[int | None, TokenLogprob | None]]]:
        """The sampled token of each sequence whose end is in the batch, with its log-probability."""
        sequences = [chunk.sequence for chunk in batch if chunk.is_last]
        if not sequences:
            return
        logits = self.runner.next_logits(hidden_states, batch)
        tokens = self.sampler.sample(logits, sequences)
        for sequence, row, token_id in zip(sequences, logits, tokens, strict=True):
            num_top = sequence.params.logprobs
            logprob = None
            if token_id is not None and num_top is not None:
                (logprob,) = token_logprobs(row[None], [token_id], num_top)
            yield sequence, (token_id, logprob)

    def _prompt_logprobs(self, rows: NDArray[Any], chunk: Chunk) -> Iterator[TokenLogprob]:
        """Log-probabilities of prompt tokens: each row [hidden] gives those of the token after it.

        After a preemption, rows are computed again whose result the sequence already has: they are skipped.
        """
        sequence = chunk.sequence
        if not sequence.params.prompt_logprobs:
            return
        start = max(chunk.start, len(sequence.prompt_logprobs))
        token_ids = sequence.token_ids[start + 1 : min(chunk.end + 1, sequence.num_prompt_tokens)]
        first = start - chunk.start
        for logits in all_logits(self.runner.model, rows[first : first + len(token_ids)]):
            yield from token_logprobs(logits, token_ids[: len(logits)], sequence.params.logprobs or 0)
            token_ids = token_ids[len(logits) :]
