"""Chooses the next token of each sequence from its logits."""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from control_plane.engine.model.logits import Logits, TokenCounts, add_bias, exclude, log_softmax, penalise
from control_plane.engine.state.sequence import SamplingParams, Sequence, TokenLogprob

LEAST_TEMPERATURE = 1e-5
"""Below this, sampling is greedy, as in vLLM: dividing by less can overflow float32."""
PART = 512
"""Probabilities in a group whose sum `token_at` computes first."""
_SEEDS = 1 << 64
"""NumPy's generators take no negative seeds; clients may send any integer of 64 bits."""

_IMPOSSIBLE = np.float32(-np.inf)

Sums = NDArray[np.float64]


@dataclass
class Sampler:
    """Samples greedily or at random. Each sequence has its own random generator.

    So a sequence with a seed gets the same tokens, whichever sequences share its steps.
    """

    eos_ids: frozenset[int] = frozenset()
    """The model's end tokens."""
    _generators: dict[Sequence, np.random.Generator] = field(default_factory=dict)
    _counts: dict[Sequence, TokenCounts] = field(default_factory=dict)

    def sample(self, logits: Logits, sequences: list[Sequence]) -> list[int | None]:
        """The next token of each sequence, from its row of the logits [len(sequences), vocabulary].

        None for a row of logits that are not finite, or where the sequence's matcher has failed: only that
        sequence cannot continue.
        """
        # The largest of a row with a NaN is that NaN.
        likeliest = logits.argmax(axis=1).tolist()
        return [
            self._next(token, row, sequence) if math.isfinite(row[token]) else None
            for token, row, sequence in zip(likeliest, logits, sequences, strict=True)
        ]

    def forget(self, sequence: Sequence) -> None:
        """Drop what is kept of a sequence that has ended."""
        self._generators.pop(sequence, None)
        self._counts.pop(sequence, None)

    def _next(self, likeliest: int, logits: Logits, sequence: Sequence) -> int | None:
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
        return token_at(self._generator(sequence).random(), token_probabilities(logits, params))

    def _changed(self, logits: Logits, sequence: Sequence) -> Logits:
        """A copy of the logits [vocabulary], with all changes that the sequence's request asks for."""
        params = sequence.params
        logits = logits.copy()
        add_bias(logits, params.logit_bias)
        if params.penalises:
            if sequence not in self._counts:
                self._counts[sequence] = TokenCounts(sequence)
            penalise(logits, *self._counts[sequence].current(), params)
        if sequence.num_output_tokens < params.min_tokens:
            exclude(logits, params.end_ids(self.eos_ids))
        return logits

    def _generator(self, sequence: Sequence) -> np.random.Generator:
        if sequence not in self._generators:
            seed = sequence.params.seed
            self._generators[sequence] = np.random.default_rng(None if seed is None else seed % _SEEDS)
        return self._generators[sequence]


def masked(logits: Logits, mask: bytes) -> Logits:
    """Logits [vocabulary] without the tokens whose bits in the mask are 0, the first token's the lowest.

    If something else has excluded all that remain, they are equally likely.
    """
    bits = np.unpackbits(np.frombuffer(mask, np.uint8), count=len(logits), bitorder="little")
    forbidden = bits == 0
    allowed = np.where(forbidden, _IMPOSSIBLE, logits)
    if allowed.max() > -np.inf:
        return allowed
    return np.where(forbidden, _IMPOSSIBLE, np.float32(0))


def token_probabilities(logits: Logits, params: SamplingParams) -> Logits:
    """The distribution [vocabulary] after temperature, top-k, top-p and min-p, in transformers' order.

    `params.temperature` must be at least `LEAST_TEMPERATURE`.
    """
    logits = logits / np.float32(params.temperature)
    if 0 < params.top_k < len(logits):
        least = np.partition(logits, -params.top_k)[-params.top_k]
        logits[logits < least] = -np.inf
    probabilities = _softmax(logits)
    if params.top_p < 1:
        possible = np.flatnonzero(probabilities)
        order = possible[np.argsort(-probabilities[possible])]
        ordered = probabilities[order]
        # A token stays if the sum of those before it is below top_p, so the likeliest one always stays.
        probabilities[order[ordered.cumsum(dtype=np.float64) - ordered >= params.top_p]] = 0
    if params.min_p > 0:
        probabilities[probabilities < np.float32(params.min_p) * probabilities.max()] = 0
    probabilities /= probabilities.sum()
    return probabilities


def token_at(point: float, probabilities: Logits) -> int:
    """The token at which the cumulative sum of a distribution [vocabulary] passes `point`, in [0, 1).

    A uniformly random point gives a draw from the distribution. The search goes by groups of PART tokens, and
    then within one of them, since a cumulative sum in float64 over all of them takes longer.
    """
    parts = np.pad(probabilities, (0, -len(probabilities) % PART)).reshape(-1, PART)
    sums = parts.sum(axis=1, dtype=np.float64).cumsum()
    part = _first_above(point * float(sums[-1]), sums)
    before = float(sums[part - 1]) if part else 0.0
    within = parts[part].cumsum(dtype=np.float64)
    return part * PART + _first_above(point * float(sums[-1]) - before, within)


def token_logprobs(logits: Logits, token_ids: list[int], num_top: int) -> list[TokenLogprob]:
    """The log-probability of each token in its row of the logits [len(token_ids), vocabulary]."""
    logprobs = log_softmax(logits)
    num_top = min(num_top, logprobs.shape[1])
    return [
        TokenLogprob(token_id, float(row[token_id]), _largest(row, num_top))
        for token_id, row in zip(token_ids, logprobs, strict=True)
    ]


def _softmax(logits: Logits) -> Logits:
    """The softmax of logits [vocabulary], of which at least one is above -inf."""
    exponentials: Logits = np.exp(logits - logits.max())
    exponentials /= exponentials.sum()
    return exponentials


def _largest(row: Logits, number: int) -> tuple[tuple[int, float], ...]:
    """Indices and values of the largest of a row [vocabulary], in descending order."""
    some = np.argpartition(row, len(row) - number)[len(row) - number :] if number else np.empty(0, np.int64)
    order = some[np.argsort(-row[some], kind="stable")]
    return tuple(zip(order.tolist(), row[order].tolist(), strict=True))


def _first_above(value: float, sums: Sums) -> int:
    """Index of the first of the rising sums [n] above the value; rounding may not take it past the last."""
    below_last = math.nextafter(float(sums[-1]), 0.0)
    return int(np.searchsorted(sums, min(value, below_last), side="right"))
