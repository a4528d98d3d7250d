"""Chooses the expert to drop: the one whose next use is expected last.

The layers are computed in turn, round after round. In its turn, a layer calls each of its experts with a
probability that is estimated from the calls so far. Dropping the least recently used expert would be wrong,
since where layers take turns that one is needed next; dropping the least frequently used one as well, since
it may belong to a text that has just begun.
"""

import numpy as np
from numpy.typing import NDArray

from functions.fast_path.shared import UsesState

HALF_LIVES = (4, 128)
"""Calls of a layer after which a use counts half: the short one follows the present text, the long one the
average text. The estimate is the mean of both. Chosen with the tests' recorded routing and a random one."""
ROWS = 8
"""A call of more rows is scaled down to so many: a prefill uses nearly all experts, which predicts little."""

LEAST = 1e-9
"""The least probability, of experts that were never used."""


class NextUse:
    """Estimates how soon each expert of a block is called again. Experts are named by position."""

    def __init__(self, layer_of: NDArray[np.int64]) -> None:
        """`layer_of` [N] is each position's layer, counted from the block's first, ascending."""
        self._layer_of = layer_of
        self._layers = int(layer_of.max()) + 1
        self.bounds = np.searchsorted(layer_of, np.arange(self._layers + 1)).astype(np.int64)
        """[layers + 1]: the first position of each layer, and the end of the last one."""
        self.kept = 0.5 ** (1 / np.array(HALF_LIVES))
        """[half-lives]: what is left of a use after one call."""
        self.uses = np.zeros((len(HALF_LIVES), len(layer_of)))
        """[half-lives, N]: the probability that a call of the expert's layer uses the expert."""
        self.rounds = np.full(len(layer_of), 1 / LEAST)
        """[N]: how many rounds pass until the expert's next use, on average."""
        self.last_used = np.zeros(len(layer_of), np.int64)
        """[N]: the number of the call that last used the expert."""
        self.state = UsesState()

    def record(self, layer: int, experts: NDArray[np.int64], rows_of: NDArray[np.int64], rows: int) -> None:
        """Count a call of `layer` with `rows` rows, of which rows_of[i] used experts[i].

        `count_use` in fast_path/csrc/residency.h does the same for calls in C.
        """
        self.state.calls += 1
        self.state.layer = layer
        self.last_used[experts] = self.state.calls
        of_layer = slice(self.bounds[layer], self.bounds[layer + 1])
        kept = self.kept[:, None]
        self.uses[:, of_layer] *= kept
        self.uses[:, experts] += (1 - kept) * np.minimum(1.0, rows_of * (ROWS / rows))
        mean = self.uses[:, of_layer].sum(axis=0) / len(HALF_LIVES)
        self.rounds[of_layer] = 1 / np.maximum(mean, LEAST)

    def victim(self, candidates: NDArray[np.int64]) -> int:
        """The position to drop, out of at least one; tie-break: the least recently used."""
        # The present layer's next turn comes after that of all other layers.
        turns = (self._layer_of[candidates] - self.state.layer - 1) % self._layers
        wait = self.rounds[candidates] * self._layers + turns
        last = candidates[wait == wait.max()]
        return int(last[self.last_used[last].argmin()])
