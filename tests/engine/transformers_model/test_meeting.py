"""Passes meet at each layer, and end together when one of them fails."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from control_plane.engine.experts.dispatcher import RowsFailed
from control_plane.engine.model.transformers_model.lockstep.meeting import Pass, ask, run_together
from control_plane.errors import FunctionUnavailable


class Doubling:
    """Experts that double their rows, and remember what they got."""

    def __init__(self, fails_in: int | None = None) -> None:
        self.calls: list[tuple[int, list[float]]] = []
        self._fails_in = fails_in

    def __call__(
        self, layer: int, rows: NDArray[Any], index: NDArray[Any], weights: NDArray[Any]
    ) -> NDArray[Any]:
        self.calls.append((layer, rows[:, 0].tolist()))
        if layer == self._fails_in:
            raise RowsFailed(FunctionUnavailable("gone"), rows[:, 0] > 2)
        return rows * 2


def passing(value: float, num_rows: int, layers: list[int], log: list[str] | None = None) -> Any:
    """A pass of rows of this value through these layers; its result is what came back."""

    def compute() -> float:
        rows = np.full((num_rows, 1), value, np.float32)
        try:
            for layer in layers:
                if layer < 0:
                    raise IndexError("a bug")
                rows = ask(layer, rows, np.zeros((num_rows, 1), np.int64), np.ones((num_rows, 1), np.float32))
        finally:
            if log is not None:
                log.append(f"{value} ended")
        return float(rows[0, 0])

    return compute


def test_rows_of_one_layer_go_out_together() -> None:
    experts = Doubling()
    passes = [Pass(0, 2, passing(1, 2, [0, 1])), Pass(2, 1, passing(3, 1, [0, 1]))]
    assert run_together(passes, experts) == [4, 12]
    assert experts.calls == [(0, [1, 1, 3]), (1, [2, 2, 6])]


def test_passes_that_skip_layers_meet_the_others_again() -> None:
    experts = Doubling()
    passes = [
        Pass(0, 1, passing(1, 1, [2])),
        Pass(1, 1, passing(3, 1, [0, 1, 2])),
        Pass(2, 1, passing(5, 1, [])),
    ]
    assert run_together(passes, experts) == [2, 24, 5]
    assert experts.calls == [(0, [3]), (1, [6]), (2, [1, 12])]


def test_failed_rows_are_those_of_the_step() -> None:
    passes = [
        Pass(0, 2, passing(1, 2, [0])),
        Pass(2, 1, passing(3, 1, [2])),
        Pass(3, 2, passing(1, 2, [2])),
        Pass(5, 1, passing(4, 1, [2])),
    ]
    with pytest.raises(RowsFailed) as caught:
        run_together(passes, Doubling(fails_in=2))
    assert caught.value.rows.tolist() == [False, False, True, False, False, True]


def test_a_bug_in_one_pass_ends_the_others() -> None:
    log: list[str] = []
    passes = [
        Pass(0, 1, passing(1, 1, [0, 1], log)),
        Pass(1, 1, passing(2, 1, [0, -1], log)),
        Pass(2, 1, passing(3, 1, [0, 1], log)),
    ]
    with pytest.raises(IndexError):
        run_together(passes, Doubling())
    assert sorted(log) == ["1 ended", "2 ended", "3 ended"]
