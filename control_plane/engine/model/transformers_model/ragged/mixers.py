"""Runs the modules that keep states of a sequence, each sequence's rows with its own states.

Rows that decode are computed as one batch, in which each sequence has one row; a part of a prompt is one of
its own. All other modules see the rows of all sequences as one sequence [1, N].
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from control_plane.engine.kernels import DenseKernel
from control_plane.engine.model.ragged_batch import Span
from control_plane.engine.model.transformers_model.ragged.row_groups import RowGroup, groups_of, joined
from control_plane.engine.model.transformers_model.ragged.state_cache import StateCache, StateKey
from control_plane.engine.model.transformers_model.ragged.state_search import StateSearch
from control_plane.engine.model.transformers_model.ragged.step_functions import StatePlaces, StepFunctions
from control_plane.engine.model.transformers_model.tensor_views import to_torch
from control_plane.engine.state.lane_states import LaneStates, StateShape


class MixerStates(StateCache):
    """The states of the rows that a mixer computes now."""

    def __init__(self, keys: Sequence[StateKey]) -> None:
        super().__init__()
        self.in_kernel: set[StateKey] = set()
        """The states that a kernel reads and writes where rows decode."""
        self._numbers = {key: number for number, key in enumerate(keys)}
        self._states: LaneStates
        self._group: RowGroup
        self._held: dict[StateKey, torch.Tensor] = {}

    @contextmanager
    def of_rows(self, states: LaneStates, group: RowGroup) -> Iterator[None]:
        """Until the context ends, the states are these rows'. What a mixer then has is kept."""
        self._states, self._group = states, group
        try:
            yield
            for key, state in self._held.items():
                if not state.is_meta:
                    places = to_torch(self._array(key))
                    places.index_copy_(0, group.targets, state.to(places.dtype))
        finally:
            self._held.clear()

    def read(self, key: StateKey) -> torch.Tensor | None:
        sources = self._group.sources
        # A mixer may change what it gets.
        if key not in self._held and sources is not None:
            places = to_torch(self._array(key))
            if self._group.length == 1 and key in self.in_kernel:
                # Nothing but the kernel can use it.
                self._held[key] = places.new_empty((len(sources), *places.shape[1:]), device="meta")
            else:
                self._held[key] = places.index_select(0, sources)
        return self._held.get(key)

    def write(self, key: StateKey, state: torch.Tensor) -> None:
        self._held[key] = state

    def places(self, key: StateKey) -> StatePlaces:
        """A state in `in_kernel`. There must be one before the rows."""
        sources, targets = self._group.sources, self._group.targets
        assert sources is not None
        return StatePlaces(self._array(key), sources.numpy(), targets.numpy())

    def _array(self, key: StateKey) -> Any:
        """[places, *sizes]"""
        return self._states.arrays[self._numbers[key]]


class Mixers:
    """The modules of a model that keep states, which then need a step."""

    def __init__(self, found: StateSearch, kernel: DenseKernel, threads: int) -> None:
        """`threads` are the most of a kernel."""
        self.shapes: list[StateShape] = list(found.shapes.values())
        """A sequence's states."""
        self.cache = MixerStates(list(found.shapes))
        """To be given to the model."""
        self._states: LaneStates
        self._groups: list[RowGroup] = []
        self._num_rows = 0
        mixers: Any = found.mixers
        functions = StepFunctions(kernel, threads, self.cache.places)
        for module, keys in mixers.items():
            decode, in_kernel = functions.replaced_in(module, {key: found.shapes[key] for key in keys})
            self.cache.in_kernel |= in_kernel
            module.forward = partial(self._compute, module.forward, decode)

    @contextmanager
    def step(self, spans: Sequence[Span], states: LaneStates) -> Iterator[None]:
        """Until the context ends, mixers compute the rows of these spans. Then their states are kept.

        Raises `EngineError` for a state that is lost.
        """
        self._states, self._groups = states, groups_of(spans, states)
        self._num_rows = sum(span.length for span in spans)
        yield
        for span in spans:
            states.commit(span.lane, span.end)

    def _compute(
        self, forward: Callable[..., Any], decode: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        outputs = []
        for group in self._groups:
            compute = forward if group.sources is None or group.length > 1 else decode
            with self.cache.of_rows(self._states, group):
                own = group.of((args, kwargs), self._num_rows)
                outputs.append(compute(*own[0], **own[1]))
        return joined(outputs, self._groups, self._num_rows)
