"""Sends the rows of one MoE layer to the functions that hold their experts, and adds up the results."""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from control_plane.engine.experts.prefetcher import Prefetcher
from control_plane.engine.scheduling.interruption import Interruption
from control_plane.engine.state.stopwatch import StepPart, Stopwatch
from control_plane.errors import GatewayError
from control_plane.faas.invocation import ExpertInvoker, PendingInvocations, ResidentLimits
from control_plane.partition.manifest import Manifest
from functions.contract.messages import Invocation, InvocationResult, Prefetch
from functions.kernels.bfloat16 import bf16_to_f32, f32_to_bf16

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
    hidden_states: NDArray[Any]
    """The batch's rows [T, H]."""
    invocations: PendingInvocations
    prefetcher: Prefetcher | None
    stopwatch: Stopwatch

    def wait(self) -> NDArray[Any]:
        """The weighted sums [T, H] of the experts' outputs, in the dtype of the hidden states.

        Raises `RowsFailed`.
        """
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
        self, layer: int, hidden_states: NDArray[Any], index: NDArray[Any], weights: NDArray[np.float32]
    ) -> PendingExperts:
        """Send the rows [T, H] to the experts `index` [T, K] of integers, weighted by `weights` [T, K].

        hidden_states are float32, or the bits of bfloat16 as uint16. Nothing may change the arrays until the
        result is there. Raises `Interrupted`, before anything is sent, if the step is to give way to other
        sequences.
        """
        self._interruption.check()
        lap, prefetcher = self._stopwatch.lap, self._prefetcher
        lap(StepPart.DENSE)
        for observe in self.observers:
            observe(layer, hidden_states, index)
        hints = prefetcher.predict(layer, hidden_states, index) if prefetcher is not None else {}
        lap(StepPart.PREFETCH)
        groups = self.group(layer, hidden_states, index, weights, hints)
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
    groups: list[RowGroup], results: Mapping[str, InvocationResult], like: NDArray[Any]
) -> NDArray[Any]:
    """The sum of all functions' outputs, row by row, in the shape and dtype of `like`."""
    if len(groups) == 1:
        # Every row has an expert, so one function alone has them all.
        return results[groups[0].function].output
    # Sums are float32: in bf16, each of several functions' outputs would be rounded once more.
    total = np.zeros(like.shape, np.float32)
    is_bf16 = like.dtype == np.uint16
    for group in groups:
        output = results[group.function].output
        # A group has each row once.
        total[slice(None) if group.rows is None else group.rows] += bf16_to_f32(output) if is_bf16 else output
    return f32_to_bf16(total) if is_bf16 else total
