"""Sends the rows of one MoE layer to the functions that hold their experts, and adds up the results."""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from control_plane.engine.experts.prefetcher import Prefetcher
from control_plane.engine.experts.row_groups import Batch, RowGroup, Rows, add_up, group_rows
from control_plane.engine.scheduling.interruption import Interruption
from control_plane.engine.state.stopwatch import StepPart, Stopwatch
from control_plane.errors import GatewayError
from control_plane.faas.invocation import ExpertInvoker, PendingInvocations, ResidentLimits
from control_plane.partition.manifest import Manifest
from functions.contract.messages import Invocation, Prefetch

RoutingObserver = Callable[[int, NDArray[Any], NDArray[np.int64]], None]
"""Gets the layer, the hidden states [T, H] and the experts [T, K] of all rows, before they are sent."""


class RowsFailed(Exception):
    """Functions that some rows of a batch need have failed for good. The other rows can be computed again."""

    def __init__(self, error: GatewayError, rows: np.ndarray) -> None:
        """`rows` [T] says of each row whether it needs a function that failed."""
        super().__init__(str(error))
        self.error = error
        self.rows = rows


@dataclass(slots=True)
class PendingExperts:
    """The routed experts of one layer, whose functions are computing."""

    rows: Mapping[str, Rows]
    """The numbers of the rows that each function has."""
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
        parts = [(rows, results[function].output) for function, rows in self.rows.items()]
        total = add_up(parts, self.hidden_states)
        lap(StepPart.ADD)
        return total

    def _rows_of(self, functions: Set[str]) -> np.ndarray:
        """For each row [T], whether it needs one of these functions; all rows if none is named."""
        needing = np.full(len(self.hidden_states), not functions)
        for function in functions & self.rows.keys():
            rows = self.rows[function]
            needing[slice(None) if rows is None else rows] = True
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
        self._sole = {
            layer: int(owner[0]) for layer, owner in self._owner.items() if (owner == owner[0]).all()
        }
        """The function of each layer that has only one."""

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
        batch = Batch(
            np.ascontiguousarray(hidden_states),
            np.ascontiguousarray(index, np.int16),
            np.ascontiguousarray(weights, np.float32),
        )
        groups = self._groups(layer, batch)
        invocations = dict(self._invocation(layer, group, hints) for group in groups)
        pending = self._invoker.begin(invocations)
        lap(StepPart.SEND)
        if prefetcher is not None:
            prefetcher.prefetch({name: hint for name, hint in hints.items() if name not in invocations})
            lap(StepPart.PREFETCH)
        rows = dict(zip(invocations, (group.rows for group in groups), strict=True))
        return PendingExperts(rows, batch.hidden_states, pending, prefetcher, self._stopwatch)

    def _groups(self, layer: int, batch: Batch) -> Sequence[RowGroup]:
        if layer not in self._sole or not batch.index.size:
            return group_rows(self._owner[layer], batch)
        # One function has all experts of the layer, and so all rows.
        return [RowGroup(self._sole[layer], None, batch.hidden_states, batch.index, batch.weights)]

    def _invocation(
        self, layer: int, group: RowGroup, hints: Mapping[str, Prefetch]
    ) -> tuple[str, Invocation]:
        """The function's name, and what it is to compute; with its hint of the experts to prefetch."""
        function = self._functions[group.function]
        limit = self._resident_limits.by_function.get(function)
        rows = group.hidden_states, group.index, group.weights
        return function, Invocation(layer, self._model, *rows, limit, hints.get(function, {}))
