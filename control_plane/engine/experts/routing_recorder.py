"""Counts which experts the rows of a model are routed to."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class RoutingRecorder:
    """Counts the choices of a model's routers, as the dispatcher sees them. It is a `RoutingObserver`."""

    def __init__(self, moe_layers: Sequence[int], num_experts: int) -> None:
        self._numbers = {layer: number for number, layer in enumerate(moe_layers)}
        self._counts = np.zeros((len(moe_layers), num_experts, num_experts), np.int64)

    def __call__(self, layer: int, hidden_states: NDArray[Any], index: NDArray[np.int64]) -> None:
        """Count the experts [T, K] of a layer's rows."""
        chosen = np.zeros((len(index), self._counts.shape[1]), np.float32)
        np.put_along_axis(chosen, index, 1, axis=1)
        # Row by row, the product counts each pair of chosen experts; the diagonal counts single experts.
        self._counts[self._numbers[layer]] += (chosen.T @ chosen).astype(np.int64)

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
