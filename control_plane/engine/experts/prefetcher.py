"""Asks functions to read the next layer's experts from disk early, as long as this makes steps faster."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from control_plane.engine.experts.predictor import ExpertPredictor
from control_plane.engine.experts.trial import Trial
from control_plane.faas.invocation import ExpertInvoker
from control_plane.partition.manifest import Manifest
from functions.contract.messages import Invocation, InvocationResult, Prefetch

PATIENCE = 64
"""A function gets no more hints after this many answers in a row without a cold or a prefetched expert.

Such a function holds all the experts that it needs.
"""
MOST_ROWS = 32
"""Larger steps are not predicted: they call most experts of a layer, so that their order hardly matters."""
MOST_EXPERTS = 32
"""The most experts in one hint."""


class Prefetcher:
    """Predicts the next layer's experts and sends them to their functions as hints.

    Functions that are called anyway get the hint with their rows, the others get an invocation without rows.
    Only the engine's thread uses it.
    """

    def __init__(
        self,
        manifest: Manifest,
        predictor: ExpertPredictor,
        invoker: ExpertInvoker,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model = manifest.fingerprint
        self._no_rows = np.empty(
            (0, manifest.hidden_size), np.uint16 if manifest.dtype == "bf16" else np.float32
        )
        self._invoker = invoker
        self._predictor = predictor
        layers = manifest.moe_layers
        self._next_layer = dict(zip(layers, layers[1:] + layers[:1], strict=True))
        self._owner = {
            (layer, expert): block.function
            for block in manifest.blocks
            for layer, experts in block.experts.items()
            for expert in experts
        }
        self._patience: defaultdict[str, int] = defaultdict(lambda: PATIENCE)
        self._hits: defaultdict[str, int] = defaultdict(int)
        self._clock = clock
        self._trial = Trial()
        self._rows = 0
        self._started = 0.0

    def begin_step(self, tenants: Iterable[tuple[str, int]]) -> None:
        """Start a step with these tenants' rows: see `ExpertPredictor.begin_step`."""
        tenants = list(tenants)
        self._predictor.begin_step(tenants)
        self._rows = sum(rows for _, rows in tenants)
        self._started = self._clock()

    def end_step(self) -> None:
        """End a step that was computed completely, so that its duration counts."""
        if self._may_help:
            self._trial.record(self._rows, self._clock() - self._started)

    def predict(self, layer: int, hidden_states: NDArray[Any], index: NDArray[Any]) -> dict[str, Prefetch]:
        """Predict the next layer's experts, while rows [T, H] of `layer` go to its experts `index` [T, K].

        hidden_states are float32, or the bits of bfloat16 as uint16. Returns the hints by function.
        """
        if not self._may_help or not self._trial.enabled:
            return {}
        self._predictor.record(layer, index)
        following = self._next_layer[layer]
        predicted: defaultdict[str, list[int]] = defaultdict(list)
        for expert in self._predictor.experts(following, hidden_states):
            function = self._owner[following, expert]
            if self._patience[function] and len(predicted[function]) < MOST_EXPERTS:
                predicted[function].append(expert)
        return {function: {following: experts} for function, experts in predicted.items() if experts}

    def prefetch(self, hints: Mapping[str, Prefetch]) -> None:
        """Send hints to functions that the current layer does not call. Waits for no answer."""
        if not hints:
            return
        nothing = self._no_rows, np.empty((0, 0), np.int16), np.empty((0, 0), np.float32)
        self._invoker.prefetch(
            {
                function: Invocation(layer, self._model, *nothing, prefetch=hint)
                for function, hint in hints.items()
                for layer in hint
            }
        )

    def observe(self, results: Mapping[str, InvocationResult]) -> None:
        """Note from a layer's results which functions miss experts or use prefetched ones."""
        for function, result in results.items():
            report = result.residency
            hits = self._hits[function] if report is None else report.prefetch_hits
            if result.cold_experts or hits != self._hits[function]:
                self._hits[function] = hits
                self._patience[function] = PATIENCE
            elif self._patience[function]:
                self._patience[function] -= 1

    @property
    def _may_help(self) -> bool:
        """Whether the step has few rows, and some function still misses experts."""
        return self._rows <= MOST_ROWS and (not self._patience or any(self._patience.values()))
