"""Picks the next token of each sequence."""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from control_plane.engine.sequence import SamplingParams, Sequence, TokenLogprob

LEAST_TEMPERATURE = 1e-5
"""Below this, sampling is greedy: dividing by less can leave float32's range. vLLM draws the same line."""
PART = 512
"""Probabilities that are added up at a time, where a token is drawn."""


@dataclass
class Sampler:
    """Greedy, or random under temperature and the like; each sequence has a generator of its own."""

    _generators: dict[Sequence, torch.Generator] = field(default_factory=dict)

    def sample(self, logits: torch.Tensor, sequences: list[Sequence]) -> list[int | None]:
        """The next token of each sequence, from its row of the logits [len(sequences), vocabulary].

        None for a row that holds no numbers: its sequence cannot go on, the others can.
        """
        best, tokens = logits.max(dim=-1)
        greedy = zip(tokens.tolist(), best.tolist(), strict=True)
        return [
            None if not math.isfinite(logit) else self._next(token, row, sequence)
            for (token, logit), row, sequence in zip(greedy, logits, sequences, strict=True)
        ]

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended."""
        self._generators.pop(sequence, None)

    def _next(self, likeliest: int, logits: torch.Tensor, sequence: Sequence) -> int:
        params = sequence.params
        if params.repetition_penalty != 1:
            logits = penalised(logits, sequence.token_ids, params.repetition_penalty)
            likeliest = int(logits.argmax())
        if params.temperature < LEAST_TEMPERATURE:
            return likeliest
        point = torch.rand((), generator=self._generator(sequence), dtype=torch.float64)
        return token_at(float(point), token_probabilities(logits, params))

    def _generator(self, sequence: Sequence) -> torch.Generator:
        if sequence not in self._generators:
            generator = torch.Generator()
            if sequence.params.seed is None:
                generator.seed()
            else:
                generator.manual_seed(sequence.params.seed)
            self._generators[sequence] = generator
        return self._generators[sequence]


def penalised(logits: torch.Tensor, token_ids: list[int], penalty: float) -> torch.Tensor:
    """The logits [vocabulary], those of tokens that are there already made less likely (arXiv 1909.05858)."""
    seen = torch.tensor(token_ids).unique()
    scores = logits[seen].float()
    return logits.float().index_copy(0, seen, torch.where(scores < 0, scores * penalty, scores / penalty))


def token_probabilities(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """The distribution [vocabulary] to draw from: temperature, top-k, top-p, min-p, in transformers' order.

    `params.temperature` must be at least `LEAST_TEMPERATURE`.
    """
    logits = logits.float() / params.temperature
    if 0 < params.top_k < len(logits):
        least = logits.topk(params.top_k).values[-1]
        logits = logits.masked_fill(logits < least, -torch.inf)
    probabilities = logits.softmax(dim=-1)
    if params.top_p < 1:
        ordered, index = probabilities.sort(descending=True)
        # A token stays while those before it have not yet reached top_p: the most likely one always does.
        beyond = ordered.cumsum(dim=-1) - ordered >= params.top_p
        probabilities = probabilities.scatter(0, index, ordered.masked_fill(beyond, 0.0))
    if params.min_p > 0:
        unlikely = probabilities < params.min_p * probabilities.max()
        probabilities = probabilities.masked_fill(unlikely, 0.0)
    return probabilities / probabilities.sum()


def token_at(point: float, probabilities: torch.Tensor) -> int:
    """The token of a distribution [vocabulary] at `point`, from 0 to below 1, of its cumulative sum.

    For a point drawn evenly it is a draw from the distribution, which torch.multinomial takes many times as
    long for: it draws a number for each token.
    """
    parts = F.pad(probabilities, (0, -len(probabilities) % PART)).view(-1, PART)
    sums = parts.sum(dim=1, dtype=torch.float64).cumsum(dim=0)
    part = _first_above(point * float(sums[-1]), sums)
    before = float(sums[part - 1]) if part else 0.0
    within = parts[part].cumsum(dim=0, dtype=torch.float64)
    return part * PART + _first_above(point * float(sums[-1]) - before, within)


def _first_above(value: float, sums: torch.Tensor) -> int:
    """Where rising sums [n] exceed the value, which is below the last one but for rounding."""
    below_last = math.nextafter(float(sums[-1]), 0.0)
    return int(torch.searchsorted(sums, min(value, below_last), right=True))


def token_logprobs(logits: torch.Tensor, token_ids: list[int], num_top: int) -> list[TokenLogprob]:
    """How likely each of the tokens was, by its row of the logits [len(token_ids), vocabulary]."""
    logprobs = logits.float().log_softmax(dim=-1)
    chosen = logprobs.gather(1, torch.tensor(token_ids)[:, None])[:, 0].tolist()
    values, indices = logprobs.topk(min(num_top, logprobs.shape[1]), dim=-1)
    return [
        TokenLogprob(token_id, logprob, tuple(zip(index, value, strict=True)))
        for token_id, logprob, index, value in zip(
            token_ids, chosen, indices.tolist(), values.tolist(), strict=True
        )
    ]
