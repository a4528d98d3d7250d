"""Predicts which experts the next layer will call, while the current layer is computed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from control_plane.partition.manifest import Manifest
from functions.kernels.activations import as_f32

RECENT_DECAY = 0.9
"""The factor by which a tenant's past use of an expert loses weight with each step."""
RECENT_WEIGHT = 0.05
"""The weight of recent use, relative to the router's probabilities. Both are about one per row in total."""
LEAST_ACCURACY = 0.6
"""A layer with a lower accuracy sends no hints: they would cost more disk time than they save."""
ACCURACY_STEP = 0.1
"""The weight of the newest prediction in the running accuracy."""
MAX_TENANTS = 256
"""The most tenants whose recent use is remembered; the one without rows for the longest time goes first."""


class RouterWeights(NamedTuple):
    """The router of a layer, and the norm of its inputs: float32, or the bits of bfloat16."""

    weight: NDArray[Any]
    """[experts, H]"""
    norm: NDArray[Any]
    """[H]: the factors that the norm before the experts multiplies its output with."""


class ExpertPredictor:
    """Applies each layer's router early, to the input of the MoE layer before it.

    A layer changes the hidden states little, so the next router mostly makes the same choice there. The first
    layer has no layer before it: its prediction is the experts that the same tenants used recently. For
    other layers, recent use only affects the order.
    """

    def __init__(self, routers: Mapping[int, NDArray[np.float32]], num_experts: int, top_k: int) -> None:
        """`routers` holds, for each MoE layer but the first, its `fitted_router` [E, H]."""
        self._routers = routers
        self._top_k = top_k
        self._num_experts = num_experts
        self._tenants: list[tuple[str, int]] = []
        self._recent: dict[str, dict[int, NDArray[np.float32]]] = {}
        self._num_called: dict[int, int] = {}
        """Number of different experts that the last step called, by layer."""
        self._predicted: dict[int, NDArray[np.int64]] = {}
        self._accuracy: dict[int, float] = {}
        """Running share (0 to 1) of predicted experts that were called, by layer."""

    @classmethod
    def of(
        cls, router: Callable[[int], RouterWeights | None], manifest: Manifest
    ) -> "ExpertPredictor | None":
        """A predictor that uses the model's own routers and norms: `router` is `DenseModel.router`.

        None for a model with a layer whose router it cannot use.
        """
        found = {layer: router(layer) for layer in manifest.moe_layers}
        routers = {
            layer: RouterWeights(as_f32(weights.weight), as_f32(weights.norm))
            for layer, weights in found.items()
            if weights is not None
        }
        if len(routers) < len(found):
            return None
        fitted = {
            after: fitted_router(routers[after].weight, routers[before].norm, routers[after].norm)
            for before, after in pairwise(manifest.moe_layers)
        }
        return cls(fitted, manifest.num_experts, manifest.num_experts_per_tok)

    def begin_step(self, tenants: Iterable[tuple[str, int]]) -> None:
        """Start a step whose batch has these tenants' rows: (tenant, number of rows) in the batch's order."""
        self._tenants = list(tenants)
        for tenant in dict.fromkeys(tenant for tenant, _ in self._tenants):
            # Inserted again, so that the dict is ordered by the last use.
            self._recent[tenant] = self._recent.pop(tenant, {})
        while len(self._recent) > MAX_TENANTS:
            del self._recent[next(iter(self._recent))]

    def record(self, layer: int, index: NDArray[Any]) -> None:
        """Record which experts [T, K] the batch's rows call in `layer`, and how good the prediction was.

        -1 is no expert.
        """
        end = 0
        for tenant, rows in self._tenants:
            start, end = end, end + rows
            used = _uses(index[start:end], self._num_experts)
            recent = self._recent[tenant].get(layer)
            share = (used / rows).astype(np.float32)
            self._recent[tenant][layer] = share if recent is None else recent * RECENT_DECAY + share
        called = np.unique(index[index >= 0])
        self._num_called[layer] = len(called)
        predicted = self._predicted.pop(layer, None)
        if predicted is not None and predicted.size:
            right = float(np.isin(predicted, called).mean())
            accuracy = self._accuracy.get(layer, right)
            self._accuracy[layer] = accuracy + ACCURACY_STEP * (right - accuracy)

    def experts(self, layer: int, hidden_states: NDArray[Any]) -> Sequence[int]:
        """Predict the experts that `layer` will call, the likeliest first.

        hidden_states [T, H], float32 or the bits of bfloat16, are the inputs of the MoE layer before. Returns
        no expert while the layer's past predictions are not accurate enough, but keeps predicting, to measure
        their accuracy.
        """
        scores = self._by_recent_use(layer)
        if layer in self._routers:
            logits = as_f32(hidden_states) @ self._routers[layer].T
            exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
            probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
            chosen = np.argpartition(-probabilities, self._top_k - 1, axis=1)[:, : self._top_k]
            shares = np.take_along_axis(probabilities, chosen, axis=1)
            likely = np.bincount(chosen.ravel(), shares.ravel(), self._num_experts)
            # Only experts that the router chooses; recent use affects their order.
            scores = np.where(likely > 0, likely + scores, 0)
            most = self._num_experts
        else:
            # Without a router there is no telling how many; assume as many as in the last step.
            most = self._num_called.get(layer, 0)
        order = np.argsort(-scores, kind="stable")[:most]
        predicted = self._predicted[layer] = order[scores[order] > 0]
        return predicted.tolist() if self._accuracy.get(layer, 0.0) >= LEAST_ACCURACY else []

    def _by_recent_use(self, layer: int) -> NDArray[np.float64]:
        scores = np.zeros(self._num_experts)
        for tenant, rows in self._tenants:
            recent = self._recent[tenant].get(layer)
            if recent is not None:
                scores += recent * (rows * RECENT_WEIGHT)
        return scores


def _uses(index: NDArray[Any], num_experts: int) -> NDArray[np.int64]:
    """How often each expert is in `index`."""
    return np.bincount(index[index >= 0], minlength=num_experts)


def fitted_router(
    router: NDArray[np.float32], norm_before: NDArray[np.float32], norm_after: NDArray[np.float32]
) -> NDArray[np.float32]:
    """A layer's router [E, H], changed so that it takes the normalized input of the layer before it.

    A norm multiplies its output by its weights. The product divides by those of the layer before, and
    multiplies by those of the router's own layer.
    """
    before = np.where(norm_before == 0, 1, norm_before)
    return router * np.where(norm_before == 0, 0, norm_after / before)
