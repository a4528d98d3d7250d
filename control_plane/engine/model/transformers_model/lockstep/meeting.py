"""Runs the forward passes of several sequences side by side, so that they meet at each layer with experts.

Each pass is a greenlet of the engine's thread. Where it needs experts, it hands its rows over and pauses.
Once all passes have paused or ended, the rows of one layer go out in one call, and their passes continue.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from greenlet import getcurrent, greenlet
from numpy.typing import NDArray

from control_plane.engine.experts.dispatcher import RowsFailed
from control_plane.engine.model.transformers_model.experts import ComputeExperts


class _Request(NamedTuple):
    """The rows of one pass that need experts of a layer: see `ComputeExperts`."""

    layer: int
    hidden_states: NDArray[Any]
    experts: NDArray[Any]
    weights: NDArray[Any]


class Pass(NamedTuple):
    """The forward pass of one sequence."""

    first_row: int
    """Of the step, whose rows lie one after the other."""
    num_rows: int
    compute: Callable[[], Any]


def ask(layer: int, hidden_states: NDArray[Any], index: NDArray[Any], weights: NDArray[Any]) -> NDArray[Any]:
    """`ComputeExperts` for a pass that `run_together` runs: the pass pauses until the result is there."""
    meeting: Any = getcurrent().parent
    out: NDArray[Any] = meeting.switch(_Request(layer, hidden_states, index, weights))
    return out


def run_together(passes: Sequence[Pass], compute_experts: ComputeExperts) -> list[Any]:
    """Run all passes; returns their results. If one raises, or the experts do, none goes on.

    `RowsFailed` names rows of the step.
    """
    meeting = _Meeting(passes, compute_experts)
    try:
        return meeting.run()
    finally:
        meeting.end()


@dataclass
class _Meeting:
    passes: Sequence[Pass]
    compute_experts: ComputeExperts
    _greenlets: list[greenlet] = field(init=False)
    _paused: dict[int, _Request] = field(default_factory=dict)
    """By the number of the pass."""
    _results: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._greenlets = [greenlet(each.compute) for each in self.passes]

    def run(self) -> list[Any]:
        for number in range(len(self.passes)):
            self._resume(number)
        while self._paused:
            # Those that are behind first, so that the others meet them again.
            layer = min(request.layer for request in self._paused.values())
            together = {n: each for n, each in sorted(self._paused.items()) if each.layer == layer}
            output = self._computed(layer, together)
            end = 0
            for number, request in together.items():
                start, end = end, end + len(request.hidden_states)
                del self._paused[number]
                self._resume(number, output[start:end])
        return [self._results[number] for number in range(len(self.passes))]

    def end(self) -> None:
        """End the passes that are paused."""
        for each in self._greenlets:
            if each:
                each.throw()

    def _resume(self, number: int, *output: NDArray[Any]) -> None:
        value = self._greenlets[number].switch(*output)
        if self._greenlets[number].dead:
            self._results[number] = value
        else:
            self._paused[number] = value

    def _computed(self, layer: int, requests: dict[int, _Request]) -> NDArray[Any]:
        """The experts' outputs for the rows of several passes, one after the other."""
        _, *parts = zip(*requests.values(), strict=True)
        rows, index, weights = map(np.concatenate, parts)
        try:
            return self.compute_experts(layer, rows, index, weights)
        except RowsFailed as failed:
            raise RowsFailed(failed.error, self._in_step(requests, failed.rows)) from failed

    def _in_step(self, requests: dict[int, _Request], rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """For each row of the step, whether it is one of these rows of the requests."""
        chosen = np.zeros(sum(each.num_rows for each in self.passes), bool)
        start = 0
        for number, request in requests.items():
            first, length, _ = self.passes[number]
            asked = rows[start : start + len(request.hidden_states)]
            start += len(asked)
            # A family may ask for other rows than the step's; then the whole pass needs them.
            chosen[first : first + length] = asked if len(asked) == length else asked.any()
        return chosen
