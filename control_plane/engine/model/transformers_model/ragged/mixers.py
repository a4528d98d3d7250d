"""Runs the modules that keep states of a sequence, each sequence's rows with its own states.

Rows that decode are computed as one batch, in which each sequence has one row; a part of a prompt is one of
its own. All other modules see the rows of all sequences as one sequence [1, N].
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from control_plane.engine.model.ragged_batch import Span
from control_plane.engine.model.transformers_model.ragged.state_cache import StateCache, StateKey
from control_plane.engine.model.transformers_model.ragged.state_search import StateSearch
from control_plane.engine.model.transformers_model.tensor_views import to_torch
from control_plane.engine.state.lane_states import LaneStates, StateShape


@dataclass(frozen=True)
class RowGroup:
    """Rows that a mixer computes in one call: `length` rows of each of some sequences."""

    rows: torch.Tensor
    """int64 [sequences * length]: the numbers of the rows in the step."""
    length: int
    sources: torch.Tensor | None
    """int64 [sequences]: the places of the states before the rows. None before a sequence's first token."""
    targets: torch.Tensor
    """int64 [sequences]: the places for the states after the rows."""

    @classmethod
    def of_spans(cls, spans: Sequence[Span], states: LaneStates) -> "RowGroup":
        """Spans of one length, all or none of which begin a sequence."""
        rows = [torch.arange(span.rows.start, span.rows.stop) for span in spans]
        sources = [states.source(span.lane, span.start) for span in spans]
        targets = [states.target(span.lane) for span in spans]
        begins = None in sources
        return cls(
            torch.cat(rows),
            spans[0].length,
            None if begins else torch.tensor(sources),
            torch.tensor(targets),
        )

    def of(self, value: Any, num_rows: int) -> Any:
        """A mixer's arguments with these rows [sequences, length, ...] in place of the step's [1, N, ...]."""
        match value:
            case torch.Tensor() if value.shape[:2] == (1, num_rows):
                return value[0, self.rows].view(len(self.targets), self.length, *value.shape[2:])
            case tuple() | list():
                return type(value)(self.of(each, num_rows) for each in value)
            case dict():
                return {name: self.of(each, num_rows) for name, each in value.items()}
        return value


def groups_of(spans: Sequence[Span], states: LaneStates) -> list[RowGroup]:
    """Rows that decode together, and each other span alone. Raises `EngineError` for a state that is lost."""
    decoding = [span for span in spans if span.length == 1 and span.start]
    others = [[span] for span in spans if span.length > 1 or not span.start]
    return [RowGroup.of_spans(each, states) for each in (decoding, *others) if each]


class MixerStates(StateCache):
    """The states of the rows that a mixer computes now."""

    def __init__(self, keys: Sequence[StateKey]) -> None:
        super().__init__()
        self._numbers = {key: number for number, key in enumerate(keys)}
        self._states: LaneStates | None = None
        self._group: RowGroup | None = None
        self._held: dict[StateKey, torch.Tensor] = {}

    @contextmanager
    def of_rows(self, states: LaneStates, group: RowGroup) -> Iterator[None]:
        """Until the context ends, the states are these rows'. What a mixer then has is kept."""
        self._states, self._group = states, group
        try:
            yield
            for key, state in self._held.items():
                place = self._places(key)
                place.index_copy_(0, group.targets, state.to(place.dtype))
        finally:
            self._held.clear()
            self._states = self._group = None

    def read(self, key: StateKey) -> torch.Tensor | None:
        # A mixer may change what it gets.
        if key not in self._held and self._group is not None and self._group.sources is not None:
            self._held[key] = self._places(key).index_select(0, self._group.sources)
        return self._held.get(key)

    def write(self, key: StateKey, state: torch.Tensor) -> None:
        self._held[key] = state

    def _places(self, key: StateKey) -> torch.Tensor:
        """[places, *sizes]"""
        assert self._states is not None
        return to_torch(self._states.arrays[self._numbers[key]])


class Mixers:
    """The modules of a model that keep states, which then need a step."""

    def __init__(self, found: StateSearch) -> None:
        self.shapes: list[StateShape] = list(found.shapes.values())
        """A sequence's states."""
        self.cache = MixerStates(list(found.shapes))
        """To be given to the model."""
        self._states: LaneStates
        self._groups: list[RowGroup] = []
        self._num_rows = 0
        mixers: Any = found.mixers
        for module in mixers:
            module.forward = partial(self._compute, module.forward)

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

    def _compute(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        outputs = []
        for group in self._groups:
            with self.cache.of_rows(self._states, group):
                own = group.of((args, kwargs), self._num_rows)
                outputs.append(forward(*own[0], **own[1]))
        return _joined(outputs, self._groups, self._num_rows)


def _joined(outputs: Sequence[Any], groups: Sequence[RowGroup], num_rows: int) -> Any:
    """Of outputs [sequences, length, ...] of all groups, the step's [1, N, ...]."""
    first = outputs[0]
    match first:
        case torch.Tensor():
            joined = first.new_empty(1, num_rows, *first.shape[2:])
            for group, output in zip(groups, outputs, strict=True):
                joined[0, group.rows] = output.flatten(0, 1)
            return joined
        case tuple():
            return tuple(_joined(each, groups, num_rows) for each in zip(*outputs, strict=True))
    return first
