"""Changes the logits of a sequence's next token as its request asks, before temperature and the like apply.

The order is vLLM's: biases, the repetition penalty, the frequency and the presence penalty. These functions
change the logits [vocabulary], which are float32, in place.
"""

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from control_plane.engine.state.sequence import SamplingParams, Sequence

Logits = NDArray[np.float32]


class TokenCounts:
    """The distinct tokens of a sequence, and how often its answer has each.

    It counts each token once, when that is new, so that a step takes no longer for a longer answer with as
    many distinct tokens.
    """

    def __init__(self, sequence: Sequence) -> None:
        self._sequence = sequence
        # Only the repetition penalty concerns the prompt's tokens.
        self._num_read = 0 if sequence.params.repetition_penalty != 1 else sequence.num_prompt_tokens
        self._places: dict[int, int] = {}
        self._ids = np.zeros(64, np.int64)
        self._counts = np.zeros(64, np.float32)

    def current(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The tokens [n], and their counts in the answer [n]: views, until the next call."""
        token_ids = self._sequence.token_ids
        for position in range(self._num_read, len(token_ids)):
            self._add(token_ids[position], position >= self._sequence.num_prompt_tokens)
        self._num_read = len(token_ids)
        number = len(self._places)
        return self._ids[:number], self._counts[:number]

    def _add(self, token_id: int, is_output: bool) -> None:
        place = self._places.setdefault(token_id, len(self._places))
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[place] = token_id
        self._counts[place] += is_output


def add_bias(logits: Logits, bias: Mapping[int, float]) -> None:
    """Add a number to the logit of each token that `bias` names."""
    if bias:
        logits[list(bias)] += np.array(list(bias.values()), np.float32)


def penalise(
    logits: Logits, token_ids: NDArray[np.int64], counts: NDArray[np.float32], params: SamplingParams
) -> None:
    """Make tokens less likely that the sequence already has: see `TokenCounts` for them.

    The repetition penalty is that of arXiv 1909.05858; frequency and presence penalty are OpenAI's, which
    concern the answer alone.
    """
    scores = logits[token_ids]
    repetition = np.float32(params.repetition_penalty)
    scores = np.where(scores < 0, scores * repetition, scores / repetition)
    scores -= np.float32(params.frequency_penalty) * counts
    scores -= np.float32(params.presence_penalty) * (counts > 0)
    logits[token_ids] = scores


def exclude(logits: Logits, token_ids: Collection[int]) -> None:
    """Make tokens impossible, unless no other token is possible."""
    places = np.array(list(token_ids), np.int64)
    before = logits[places]
    logits[places] = -np.inf
    if not logits.max() > -np.inf:
        logits[places] = before


def log_softmax(logits: Logits) -> Logits:
    """The logarithms of the softmax of each row [n, vocabulary]."""
    shifted: Logits = logits - logits.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted
