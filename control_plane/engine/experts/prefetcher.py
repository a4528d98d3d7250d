"""Tells functions which experts to expect next, as long as steps are faster for it."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from control_plane.engine.experts.predictor import ExpertPredictor
from control_plane.engine.experts.trial import Trial
from control_plane.faas.invocation import ExpertInvoker
from control_plane.partition.manifest import Manifest
from functions.contract.messages import Invocation, InvocationResult, Prefetch

PATIENCE = 64
"""How many answers in a row without an expert that was cold or read ahead end what a function is told."""
MOST_ROWS = 32
"""A step of more calls most experts of a layer: reading some of them earlier than others gains nothing."""
MOST_EXPERTS = 32
"""That one function is told of at a time."""


class Prefetcher:
    """Used by the engine's thread, before and after the sending of a layer's rows."""

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
        self._forecast = predictor
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
        """As of `ExpertPredictor`."""
        tenants = list(tenants)
        self._forecast.begin_step(tenants)
        self._rows = sum(rows for _, rows in tenants)
        self._started = self._clock()

    def end_step(self) -> None:
        """The step has come to its end, and not been given up."""
        if self._is_of_use:
            self._trial.took(self._rows, self._clock() - self._started)

    def predict(
        self, layer: int, hidden_states: torch.Tensor, index: NDArray[np.int64]
    ) -> dict[str, Prefetch]:
        """The rows [T, H] of `layer` go to the experts [T, K] of index: what the next layer's functions are
        to be told. Those that are called now are told with their rows, and the others by `prefetch`.
        """
        if not self._is_of_use or not self._trial.enabled:
            return {}
        self._forecast.record(layer, index)
        following = self._next_layer[layer]
        expected: defaultdict[str, list[int]] = defaultdict(list)
        for expert in self._forecast.experts(following, hidden_states):
            function = self._owner[following, expert]
            if self._patience[function] and len(expected[function]) < MOST_EXPERTS:
                expected[function].append(expert)
        return {function: {following: experts} for function, experts in expected.items() if experts}

    def prefetch(self, hints: Mapping[str, Prefetch]) -> None:
        """Tell functions that are not called now what the next layer will call, and wait for no answer."""
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

    @property
    def _is_of_use(self) -> bool:
        """Whether the step has few rows, and functions miss experts."""
        return self._rows <= MOST_ROWS and (not self._patience or any(self._patience.values()))

    def observed(self, answers: Mapping[str, InvocationResult]) -> None:
        """The answers of a layer, which tell who can use a predictor."""
        for function, answer in answers.items():
            hits = answer.residency.prefetch_hits
            if answer.cold_experts or hits != self._hits[function]:
                self._hits[function] = hits
                self._patience[function] = PATIENCE
            elif self._patience[function]:
                self._patience[function] -= 1
