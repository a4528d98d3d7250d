"""The rows of a step that a module which keeps states computes in one call."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from control_plane.engine.model.ragged_batch import Span
from control_plane.engine.state.lane_states import LaneStates


@dataclass(frozen=True)
class RowGroup:
    """`length` rows of each of some sequences."""

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
        """A module's arguments with these rows [sequences, length, ...] for the step's [1, N, ...]."""
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


def joined(outputs: Sequence[Any], groups: Sequence[RowGroup], num_rows: int) -> Any:
    """Of outputs [sequences, length, ...] of all groups, the step's [1, N, ...]."""
    first = outputs[0]
    match first:
        case torch.Tensor():
            whole = first.new_empty(1, num_rows, *first.shape[2:])
            for group, output in zip(groups, outputs, strict=True):
                whole[0, group.rows] = output.flatten(0, 1)
            return whole
        case tuple():
            return tuple(joined(each, groups, num_rows) for each in zip(*outputs, strict=True))
    return first
