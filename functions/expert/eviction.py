"""Which expert to drop: the one whose next use is expected last.

An expert's layer comes up once in a round over all layers, and then calls the expert with a probability that
is estimated from its calls so far. Neither the least recently used expert nor the least frequently used one
will do: the first is needed next where layers take turns, the second may be of a text that has just begun.
"""

import numpy as np
from numpy.typing import NDArray

HALF_LIVES = (4, 128)
"""Calls of a layer after which a use counts half: one follows the text, the other what texts have in common.
The mean of both estimates counts. Chosen on the recorded routing of the tests and on a random one."""
ROWS = 8
"""A call of more rows counts as what so many of them would likely have used: a prefill uses nearly all."""

_LEAST = 1e-9


class NextUse:
    """Estimates how soon each expert of a block is called again. Experts are named by position."""

    def __init__(self, layer_of: NDArray[np.int64]) -> None:
        """`layer_of` [N] is each position's layer, counted from the block's first, ascending."""
        self._layer_of = layer_of
        self._layers = int(layer_of.max()) + 1
        self._bounds = np.searchsorted(layer_of, np.arange(self._layers + 1)).tolist()
        self._kept = 0.5 ** (1 / np.array(HALF_LIVES)[:, None])
        self._added = 1 - self._kept
        self._uses = np.zeros((len(HALF_LIVES), len(layer_of)))
        """How likely each is called when its layer is, by each half-life."""
        self._rounds = np.full(len(layer_of), 1 / _LEAST)
        """How many rounds it then takes on average."""
        self._last_used = np.zeros(len(layer_of), np.int64)
        self._calls = 0
        self._layer = 0

    def record(self, layer: int, experts: NDArray[np.int64], rows_of: NDArray[np.int64], rows: int) -> None:
        """A call of `layer` has used these experts, expert i for rows_of[i] of its `rows` rows."""
        self._calls += 1
        self._layer = layer
        self._last_used[experts] = self._calls
        of_layer = slice(self._bounds[layer], self._bounds[layer + 1])
        self._uses[:, of_layer] *= self._kept
        self._uses[:, experts] += self._added * np.minimum(1.0, rows_of * (ROWS / rows))
        mean = self._uses[:, of_layer].sum(axis=0) / len(HALF_LIVES)
        self._rounds[of_layer] = 1 / np.maximum(mean, _LEAST)

    def victim(self, candidates: NDArray[np.int64]) -> int:
        """The one of these positions (at least one) to drop; among equals, the least recently used."""
        # The layer that is computed now comes up again last: all others have their turn before it.
        turns = (self._layer_of[candidates] - self._layer - 1) % self._layers
        wait = self._rounds[candidates] * self._layers + turns
        last = candidates[wait == wait.max()]
        return int(last[self._last_used[last].argmin()])
