"""Chooses the next token of each sequence from its logits."""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from control_plane.engine.model.logits import TokenCounts, add_bias, exclude, penalise
from control_plane.engine.state.sequence import SamplingParams, Sequence, TokenLogprob

LEAST_TEMPERATURE = 1e-5
"""Below this, sampling is greedy, as in vLLM: dividing by less can overflow float32."""
PART = 512
"""Probabilities in a group whose sum `token_at` computes first."""


@dataclass
class Sampler:
    """Samples greedily or at random. Each sequence has its own random generator.

    So a sequence with a seed gets the same tokens, whichever sequences share its steps.
    """

    eos_ids: frozenset[int] = frozenset()
    """The model's end tokens."""
    _generators: dict[Sequence, torch.Generator] = field(default_factory=dict)
    _counts: dict[Sequence, TokenCounts] = field(default_factory=dict)

    def sample(self, logits: torch.Tensor, sequences: list[Sequence]) -> list[int | None]:
        """The next token of each sequence, from its row of the logits [len(sequences), vocabulary].

        None for a row of logits that are not finite, or where the sequence's matcher has failed: only that
        sequence cannot continue.
        """
        best, tokens = logits.max(dim=-1)
        greedy = zip(tokens.tolist(), best.tolist(), strict=True)
        return [
            None if not math.isfinite(logit) else self._next(token, row, sequence)
            for (token, logit), row, sequence in zip(greedy, logits, sequences, strict=True)
        ]

    def forget(self, sequence: Sequence) -> None:
        """Drop what is kept of a sequence that has ended."""
        self._generators.pop(sequence, None)
        self._counts.pop(sequence, None)

    def _next(self, likeliest: int, logits: torch.Tensor, sequence: Sequence) -> int | None:
        params = sequence.params
        if params.changes_logits:
            logits = self._changed(logits, sequence)
            likeliest = int(logits.argmax())
        if sequence.matcher:
            mask = sequence.matcher.mask()
            if mask is None:
                return None
            # Last, so that nothing else makes a token possible that the grammar forbids.
            logits = masked(logits, mask)
            likeliest = int(logits.argmax())
        if params.temperature < LEAST_TEMPERATURE:
            return likeliest
        point = torch.rand((), generator=self._generator(sequence), dtype=torch.float64)
        return token_at(float(point), token_probabilities(logits, params))

    def _changed(self, logits: torch.Tensor, sequence: Sequence) -> torch.Tensor:
        """A copy of the logits [vocabulary], with all changes that the sequence's request asks for."""
        params = sequence.params
        logits = logits.to(torch.float32, copy=True)
        add_bias(logits, params.logit_bias)
        if params.penalises:
            if sequence not in self._counts:
                self._counts[sequence] = TokenCounts(sequence)
            penalise(logits, *self._counts[sequence].current(), params)
        if sequence.num_output_tokens < params.min_tokens:
            exclude(logits, params.end_ids(self.eos_ids))
        return logits

    def _generator(self, sequence: Sequence) -> torch.Generator:
        if sequence not in self._generators:
            generator = torch.Generator()
            if sequence.params.seed is None:
                generator.seed()
            else:
                generator.manual_seed(sequence.params.seed)
            self._generators[sequence] = generator
        return self._generators[sequence]


def masked(logits: torch.Tensor, mask: bytes) -> torch.Tensor:
    """Logits [vocabulary] without the tokens whose bits in the mask are 0, the first token's the lowest.

    If something else has excluded all that remain, they are equally likely.
    """
    bits = np.unpackbits(np.frombuffer(mask, np.uint8), count=len(logits), bitorder="little")
    forbidden = torch.from_numpy(bits == 0)
    allowed = logits.masked_fill(forbidden, -torch.inf)
    if allowed.max() > -torch.inf:
        return allowed
    return torch.zeros_like(logits).masked_fill(forbidden, -torch.inf)


def token_probabilities(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """The distribution [vocabulary] after temperature, top-k, top-p and min-p, in transformers' order.

    `params.temperature` must be at least `LEAST_TEMPERATURE`.
    """
    logits = logits.float() / params.temperature
    if 0 < params.top_k < len(logits):
        least = logits.topk(params.top_k).values[-1]
        logits = logits.masked_fill(logits < least, -torch.inf)
    probabilities = logits.softmax(dim=-1)
    if params.top_p < 1:
        ordered, index = probabilities.sort(descending=True)
        # A token stays if the sum of those before it is below top_p, so the likeliest one always stays.
        beyond = ordered.cumsum(dim=-1) - ordered >= params.top_p
        probabilities = probabilities.scatter(0, index, ordered.masked_fill(beyond, 0.0))
    if params.min_p > 0:
        unlikely = probabilities < params.min_p * probabilities.max()
        probabilities = probabilities.masked_fill(unlikely, 0.0)
    return probabilities / probabilities.sum()


def token_at(point: float, probabilities: torch.Tensor) -> int:
    """The token at which the cumulative sum of a distribution [vocabulary] passes `point`, in [0, 1).

    A uniformly random point gives a draw from the distribution. torch.multinomial takes many times as long,
    because it draws a random number for each token. The search goes by groups of PART tokens, and then within
    one of them.
    """
    parts = F.pad(probabilities, (0, -len(probabilities) % PART)).view(-1, PART)
    sums = parts.sum(dim=1, dtype=torch.float64).cumsum(dim=0)
    part = _first_above(point * float(sums[-1]), sums)
    before = float(sums[part - 1]) if part else 0.0
    within = parts[part].cumsum(dim=0, dtype=torch.float64)
    return part * PART + _first_above(point * float(sums[-1]) - before, within)


def _first_above(value: float, sums: torch.Tensor) -> int:
    """Index of the first of the rising sums [n] above the value; rounding may not take it past the last."""
    below_last = math.nextafter(float(sums[-1]), 0.0)
    return int(torch.searchsorted(sums, min(value, below_last), right=True))


def token_logprobs(logits: torch.Tensor, token_ids: list[int], num_top: int) -> list[TokenLogprob]:
    """The log-probability of each token in its row of the logits [len(token_ids), vocabulary]."""
    logprobs = logits.float().log_softmax(dim=-1)
    chosen = logprobs.gather(1, torch.tensor(token_ids)[:, None])[:, 0].tolist()
    values, indices = logprobs.topk(min(num_top, logprobs.shape[1]), dim=-1)
    return [
        TokenLogprob(token_id, logprob, tuple(zip(index, value, strict=True)))
        for token_id, logprob, index, value in zip(
            token_ids, chosen, indices.tolist(), values.tolist(), strict=True
        )
    ]
