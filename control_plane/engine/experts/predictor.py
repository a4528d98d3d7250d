"""Which experts the next layer is likely to call, predicted while the present one is computed."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from transformers import PreTrainedModel

from control_plane.partition.manifest import Manifest

RECENT_DECAY = 0.9
"""What a tenant's expert counts for one step later."""
RECENT_WEIGHT = 0.05
"""Of a tenant's recent use against the next layer's router, both of which add up to about one a row."""
LEAST_ACCURACY = 0.6
"""A predictor that is right less often costs the disk more time than it saves."""
ACCURACY_STEP = 0.1
MAX_TENANTS = 256
"""Whose recent use is remembered; the one that has been silent longest is forgotten first."""


class ExpertPredictor:
    """Applies each layer's router early, to what the layer before has as its input.

    A layer changes the hidden state little, so the next router's choice shows there already. The first layer
    has none before it: there, as everywhere with a small weight, counts what the same tenants used lately.
    """

    def __init__(self, routers: Mapping[int, torch.Tensor], num_experts: int, top_k: int) -> None:
        """`routers`: of each MoE layer but the first, its matrix [E, H] for inputs of the layer before."""
        self._routers = routers
        self._top_k = top_k
        self._num_experts = num_experts
        self._tenants: list[tuple[str, int]] = []
        self._recent: dict[str, dict[int, NDArray[np.float32]]] = {}
        self._num_called: dict[int, int] = {}
        """By layer: how many different experts the last step called."""
        self._predicted: dict[int, NDArray[np.int64]] = {}
        self._accuracy: dict[int, float] = {}
        """By layer: what share of the predicted experts was called, lately."""

    @classmethod
    def of(cls, model: PreTrainedModel, manifest: Manifest) -> "ExpertPredictor":
        """From the model's own routers and norms."""
        layers = model.model.layers
        routers = {
            after: fitted_router(
                layers[after].mlp.gate.weight,
                layers[before].post_attention_layernorm.weight,
                layers[after].post_attention_layernorm.weight,
            )
            for before, after in pairwise(manifest.moe_layers)
        }
        return cls(routers, manifest.num_experts, manifest.num_experts_per_tok)

    def begin_step(self, tenants: Iterable[tuple[str, int]]) -> None:
        """Whose rows the batch has, and how many of each, in their order."""
        self._tenants = list(tenants)
        for tenant in dict.fromkeys(tenant for tenant, _ in self._tenants):
            # The last ones to be remembered are the last ones to be forgotten.
            self._recent[tenant] = self._recent.pop(tenant, {})
        while len(self._recent) > MAX_TENANTS:
            del self._recent[next(iter(self._recent))]

    def record(self, layer: int, index: NDArray[np.int64]) -> None:
        """The rows [T, K] of the batch have called these experts."""
        end = 0
        for tenant, rows in self._tenants:
            start, end = end, end + rows
            used = np.bincount(index[start:end].ravel(), minlength=self._num_experts)
            recent = self._recent[tenant].get(layer)
            share = (used / rows).astype(np.float32)
            self._recent[tenant][layer] = share if recent is None else recent * RECENT_DECAY + share
        called = np.unique(index)
        self._num_called[layer] = len(called)
        predicted = self._predicted.pop(layer, None)
        if predicted is not None and predicted.size:
            right = float(np.isin(predicted, called).mean())
            accuracy = self._accuracy.get(layer, right)
            self._accuracy[layer] = accuracy + ACCURACY_STEP * (right - accuracy)

    def experts(self, layer: int, hidden_states: torch.Tensor) -> Sequence[int]:
        """Those that `layer` will call, likeliest first, by the inputs [T, H] of the layer before.

        None as long as too few of what was predicted of this layer was true.
        """
        scores = self._by_recent_use(layer)
        if layer in self._routers:
            logits = F.linear(hidden_states, self._routers[layer]).float()
            probabilities, chosen = logits.softmax(dim=1).topk(self._top_k)
            likely = np.bincount(chosen.ravel().numpy(), probabilities.ravel().numpy(), self._num_experts)
            # Only what the router names; recent use says in which order.
            scores = np.where(likely > 0, likely + scores, 0)
            most = self._num_experts
        else:
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


def fitted_router(router: torch.Tensor, norm_before: torch.Tensor, norm_after: torch.Tensor) -> torch.Tensor:
    """The router [E, H] of one layer, for inputs that carry the norm's weights of the layer before."""
    before = norm_before.float()
    ratio = torch.where(before == 0, 0.0, norm_after.float() / before)
    return (router.float() * ratio).to(router.dtype).detach()
