"""Records which experts the rows of a model are routed to, and how large the experts' inputs are."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from functions.kernels.activations import as_f32


class RoutingRecorder:
    """Records what the dispatcher sees. It is a `RoutingObserver`."""

    def __init__(self, moe_layers: Sequence[int], num_experts: int, hidden_size: int) -> None:
        self._numbers = {layer: number for number, layer in enumerate(moe_layers)}
        self._counts = np.zeros((len(moe_layers), num_experts, num_experts), np.int64)
        self._rows = np.zeros(len(moe_layers), np.int64)
        self._squares = np.zeros((len(moe_layers), hidden_size))

    def __call__(self, layer: int, hidden_states: NDArray[Any], index: NDArray[np.int64]) -> None:
        """Count the experts [T, K] of a layer's rows [T, H], and add up the squares of the rows' values.

        -1 is no expert.
        """
        number, rows = self._numbers[layer], as_f32(hidden_states)
        # The place of -1 is the last one, which is left out.
        chosen = np.zeros((len(index), self._counts.shape[1] + 1), np.float32)
        np.put_along_axis(chosen, index, 1, axis=1)
        chosen = chosen[:, :-1]
        # Row by row, the product counts each pair of chosen experts; the diagonal counts single experts.
        self._counts[number] += (chosen.T @ chosen).astype(np.int64)
        self._rows[number] += len(rows)
        self._squares[number] += np.square(rows).sum(axis=0, dtype=np.float64)

    @property
    def use(self) -> NDArray[np.int64]:
        """[layers, experts]: the rows that each expert was chosen for."""
        return self._counts.diagonal(axis1=1, axis2=2).copy()

    @property
    def together(self) -> NDArray[np.int64]:
        """[layers, experts, experts]: the rows that both experts were chosen for; 0 on the diagonal."""
        counts = self._counts.copy()
        np.einsum("lee->le", counts)[:] = 0
        return counts

    @property
    def input_squares(self) -> NDArray[np.float32]:
        """[layers, H]: the mean square of each input of a layer's experts; 0 without rows."""
        return (self._squares / np.maximum(self._rows, 1)[:, None]).astype(np.float32)
