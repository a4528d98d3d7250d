"""Picks the next token of each sequence."""

from dataclasses import dataclass, field

import torch

from control_plane.engine.sequence import SamplingParams, Sequence

LEAST_TEMPERATURE = 1e-5
"""Below this, sampling is greedy: dividing by less can leave float32's range. vLLM draws the same line."""


@dataclass
class Sampler:
    """Greedy, or random under temperature, top-k and top-p; each sequence has a generator of its own."""

    _generators: dict[Sequence, torch.Generator] = field(default_factory=dict)

    def sample(self, logits: torch.Tensor, sequences: list[Sequence]) -> list[int]:
        """The next token of each sequence, from its row of the logits [len(sequences), vocabulary]."""
        greedy = logits.argmax(dim=-1).tolist()
        return [
            token if sequence.params.temperature < LEAST_TEMPERATURE else self._draw(row, sequence)
            for token, row, sequence in zip(greedy, logits, sequences, strict=True)
        ]

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended."""
        self._generators.pop(sequence, None)

    def _draw(self, logits: torch.Tensor, sequence: Sequence) -> int:
        probabilities = token_probabilities(logits, sequence.params)
        return int(torch.multinomial(probabilities, 1, generator=self._generator(sequence)))

    def _generator(self, sequence: Sequence) -> torch.Generator:
        if sequence not in self._generators:
            generator = torch.Generator()
            if sequence.params.seed is None:
                generator.seed()
            else:
                generator.manual_seed(sequence.params.seed)
            self._generators[sequence] = generator
        return self._generators[sequence]


def token_probabilities(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """The distribution [vocabulary] to draw from: temperature, top-k, top-p, in transformers' order.

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
        probabilities /= probabilities.sum()
    return probabilities
