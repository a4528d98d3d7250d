"""Sends the rows of one MoE layer to the functions that hold their experts, and adds up what comes back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch

from control_plane.engine.experts.prefetcher import Prefetcher
from control_plane.engine.model.layers import to_numpy, to_torch
from control_plane.engine.scheduling.interruption import Interruption
from control_plane.engine.stopwatch import StepPart, Stopwatch
from control_plane.faas.invocation import ExpertInvoker, ResidentLimits
from control_plane.partition.manifest import Manifest
from functions.contract.wire import Invocation, InvocationResult, Prefetch

_NO_HINTS: Mapping[str, Prefetch] = MappingProxyType({})


@dataclass(frozen=True)
class Group:
    """The rows of a batch that one function has experts for."""

    function: str
    rows: np.ndarray | None
    """Their numbers; None when it is all of them."""
    invocation: Invocation


class Dispatcher:
    """Knows which function holds which expert."""

    def __init__(
        self,
        manifest: Manifest,
        invoker: ExpertInvoker,
        resident_limits: ResidentLimits,
        interruption: Interruption,
        stopwatch: Stopwatch,
        prefetcher: Prefetcher | None,
    ) -> None:
        self._invoker = invoker
        self._resident_limits = resident_limits
        self._interruption = interruption
        self._stopwatch = stopwatch
        self._prefetcher = prefetcher
        self._model = manifest.fingerprint
        self._functions = [block.function for block in manifest.blocks]
        self._owner = {layer: np.full(manifest.num_experts, -1, np.int32) for layer in manifest.moe_layers}
        for number, block in enumerate(manifest.blocks):
            for layer, experts in block.experts.items():
                self._owner[layer][list(experts)] = number

    def begin(
        self, layer: int, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> Callable[[], torch.Tensor]:
        """Send the rows [T, H] on their way; the returned call waits for the weighted sums [T, H].

        top_k_index and top_k_weights are [T, K]. The wait raises a `GatewayError`. Raises `Interrupted`
        when the step is to give way; nothing is on its way then.
        """
        self._interruption.check()
        lap, prefetcher = self._stopwatch.lap, self._prefetcher
        lap(StepPart.DENSE)
        index = top_k_index.numpy()
        hints = prefetcher.predict(layer, hidden_states, index) if prefetcher is not None else {}
        lap(StepPart.PREFETCH)
        weights = top_k_weights.to(torch.float32).numpy()
        groups = self.group(layer, to_numpy(hidden_states), index, weights, hints)
        invocations = {group.function: group.invocation for group in groups}
        answers = self._invoker.begin(invocations)
        lap(StepPart.SEND)
        if prefetcher is not None:
            prefetcher.prefetch({name: hint for name, hint in hints.items() if name not in invocations})
            lap(StepPart.PREFETCH)

        def wait() -> torch.Tensor:
            lap(StepPart.SHARED)
            results = answers()
            lap(StepPart.WAIT)
            if prefetcher is not None:
                prefetcher.observed(results)
            total = _add_up(groups, results, hidden_states)
            lap(StepPart.ADD)
            return total

        return wait

    def group(
        self,
        layer: int,
        hidden_states: np.ndarray,
        index: np.ndarray,
        weights: np.ndarray,
        hints: Mapping[str, Prefetch] = _NO_HINTS,
    ) -> list[Group]:
        """One group for each function that has at least one of the rows' experts, with its hint."""
        owner = self._owner[layer][index]
        limits = self._resident_limits.by_function
        numbers = np.unique(owner).tolist()
        index = index.astype(np.int16)
        groups = []
        for number in numbers:
            mine = owner == number
            rows = mine.any(axis=1).nonzero()[0]
            own_index = np.where(mine, index, np.int16(-1)) if len(numbers) > 1 else index
            inputs = hidden_states, own_index, weights
            some = None if len(rows) == len(index) else rows
            if some is not None:
                inputs = hidden_states[rows], own_index[rows], weights[rows]
            function = self._functions[number]
            invocation = Invocation(
                layer, self._model, *inputs, limits.get(function), hints.get(function, {})
            )
            groups.append(Group(function, some, invocation))
        return groups


def _add_up(groups: list[Group], answers: Mapping[str, InvocationResult], like: torch.Tensor) -> torch.Tensor:
    if len(groups) == 1:
        return to_torch(answers[groups[0].function].output)
    total = torch.zeros(like.shape, dtype=torch.float32)
    for group in groups:
        output = to_torch(answers[group.function].output)
        if group.rows is None:
            total += output
        else:
            total.index_add_(0, torch.from_numpy(group.rows), output.to(torch.float32))
    return total.to(like.dtype)
