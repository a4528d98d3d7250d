"""Sends the rows of one MoE layer to the functions that hold their experts, and adds up the results."""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from control_plane.engine.experts.prefetcher import Prefetcher
from control_plane.engine.scheduling.interruption import Interruption
from control_plane.engine.state.stopwatch import StepPart, Stopwatch
from control_plane.engine.state.tensor_views import to_numpy, to_torch
from control_plane.errors import GatewayError
from control_plane.faas.invocation import ExpertInvoker, PendingInvocations, ResidentLimits
from control_plane.partition.manifest import Manifest
from functions.contract.messages import Invocation, InvocationResult, Prefetch

_NO_HINTS: Mapping[str, Prefetch] = MappingProxyType({})


RoutingObserver = Callable[[int, NDArray[Any], NDArray[np.int64]], None]
"""Gets the layer, the hidden states [T, H] and the experts [T, K] of all rows, before they are sent."""


class RowsFailed(Exception):
    """Functions that some rows of a batch need have failed for good. The other rows can be computed again."""

    def __init__(self, error: GatewayError, rows: np.ndarray) -> None:
        """`rows` [T] says of each row whether it needs a function that failed."""
        super().__init__(str(error))
        self.error = error
        self.rows = rows


@dataclass(frozen=True)
class RowGroup:
    """The rows of a batch that are routed to experts of one function."""

    function: str
    rows: np.ndarray | None
    """The rows' numbers in the batch; None for all rows."""
    invocation: Invocation


@dataclass(slots=True)
class PendingExperts:
    """The routed experts of one layer, whose functions are computing."""

    groups: list[RowGroup]
    hidden_states: torch.Tensor
    """The batch's rows [T, H]."""
    invocations: PendingInvocations
    prefetcher: Prefetcher | None
    stopwatch: Stopwatch

    def wait(self) -> torch.Tensor:
        """The weighted sums [T, H] of the experts' outputs. Raises `RowsFailed`."""
        lap = self.stopwatch.lap
        lap(StepPart.SHARED)
        try:
            results = self.invocations.wait()
        except GatewayError as error:
            raise RowsFailed(error, self._rows_of(error.functions)) from error
        lap(StepPart.WAIT)
        if self.prefetcher is not None:
            self.prefetcher.observe(results)
        total = _add_up(self.groups, results, self.hidden_states)
        lap(StepPart.ADD)
        return total

    def _rows_of(self, functions: Set[str]) -> np.ndarray:
        """For each row [T], whether it needs one of these functions; all rows if none is named."""
        needing = np.full(len(self.hidden_states), not functions)
        for group in self.groups:
            if group.function in functions:
                needing[slice(None) if group.rows is None else group.rows] = True
        return needing


class Dispatcher:
    """Knows which function holds which expert, and sends each function its rows."""

    def __init__(
        self,
        manifest: Manifest,
        invoker: ExpertInvoker,
        resident_limits: ResidentLimits,
        interruption: Interruption,
        stopwatch: Stopwatch,
        prefetcher: Prefetcher | None,
    ) -> None:
        self.observers: list[RoutingObserver] = []
        """Called by the engine's thread."""
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
    ) -> PendingExperts:
        """Send the rows [T, H] to the experts top_k_index [T, K], weighted by top_k_weights [T, K].

        Raises `Interrupted`, before anything is sent, if the step is to give way to other sequences.
        """
        self._interruption.check()
        lap, prefetcher = self._stopwatch.lap, self._prefetcher
        lap(StepPart.DENSE)
        index = top_k_index.numpy()
        for observe in self.observers:
            observe(layer, to_numpy(hidden_states), index)
        hints = prefetcher.predict(layer, hidden_states, index) if prefetcher is not None else {}
        lap(StepPart.PREFETCH)
        weights = top_k_weights.to(torch.float32).numpy()
        groups = self.group(layer, to_numpy(hidden_states), index, weights, hints)
        invocations = {group.function: group.invocation for group in groups}
        pending = self._invoker.begin(invocations)
        lap(StepPart.SEND)
        if prefetcher is not None:
            prefetcher.prefetch({name: hint for name, hint in hints.items() if name not in invocations})
            lap(StepPart.PREFETCH)
        return PendingExperts(groups, hidden_states, pending, prefetcher, self._stopwatch)

    def group(
        self,
        layer: int,
        hidden_states: np.ndarray,
        index: np.ndarray,
        weights: np.ndarray,
        hints: Mapping[str, Prefetch] = _NO_HINTS,
    ) -> list[RowGroup]:
        """One group for each function that has at least one of the rows' experts.

        hidden_states are [T, H], index and weights [T, K]. An invocation gets its function's hint, which
        names the experts to prefetch.
        """
        owner = self._owner[layer][index]
        limits = self._resident_limits.by_function
        numbers = np.unique(owner).tolist()
        index = index.astype(np.int16)
        groups = []
        for number in numbers:
            mine = owner == number
            rows = mine.any(axis=1).nonzero()[0]
            # -1 stands for an expert of another function, which gets the row, too.
            own_index = np.where(mine, index, np.int16(-1)) if len(numbers) > 1 else index
            inputs = hidden_states, own_index, weights
            some = None if len(rows) == len(index) else rows
            if some is not None:
                inputs = hidden_states[rows], own_index[rows], weights[rows]
            function = self._functions[number]
            invocation = Invocation(
                layer, self._model, *inputs, limits.get(function), hints.get(function, {})
            )
            groups.append(RowGroup(function, some, invocation))
        return groups


def _add_up(
    groups: list[RowGroup], results: Mapping[str, InvocationResult], like: torch.Tensor
) -> torch.Tensor:
    """The sum of all functions' outputs, row by row, in the shape and dtype of `like`."""
    if len(groups) == 1:
        # Every row has an expert, so one function alone has them all.
        return to_torch(results[groups[0].function].output)
    # Sums are float32: in bf16, each of several functions' outputs would be rounded once more.
    total = torch.zeros(like.shape, dtype=torch.float32)
    for group in groups:
        output = to_torch(results[group.function].output)
        if group.rows is None:
            total += output
        else:
            total.index_add_(0, torch.from_numpy(group.rows), output.to(torch.float32))
    return total.to(like.dtype)
