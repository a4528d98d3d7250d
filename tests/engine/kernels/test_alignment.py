"""The C functions of `_dense` refuse buffers that are not aligned, which C must not read."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from control_plane.engine.kernels import _dense
from functions.kernels import LinearShape
from tests.support.functions.kernels import misaligned

ISAS = _dense.isas()


def zeros(*shape: int) -> NDArray[np.float32]:
    return np.zeros(shape, np.float32)


def linear(isa: str, x: Any, bias: Any, out: Any) -> None:
    weights = np.zeros(LinearShape(2, 2, "f32").nbytes, np.uint8)
    _dense.linear(isa, "f32", "f32", 3, 2, 1, x, ((2, weights, bias, out),))


def attention(isa: str, *buffers: Any) -> None:
    _dense.attention(isa, "f32", 3, 1, 4, 0.5, 0.0, 1, *buffers)


def rms_norm(isa: str, *buffers: Any) -> None:
    _dense.rms_norm(isa, "f32", 3, 2, 1e-6, *buffers)


def delta_rule(isa: str, *buffers: Any) -> None:
    _dense.delta_rule(isa, 3, 1, 1, 2, 2, 1, 1, *buffers)


def short_convolution(isa: str, *buffers: Any) -> None:
    _dense.short_convolution(isa, "f32", 3, 2, 4, False, *buffers)


STATES = zeros(1, 1, 4, 2)
HEADS = zeros(3, 1, 2)
ROWS = np.zeros(3, np.int64)
CALLS: Sequence[tuple[Callable[..., None], Sequence[NDArray[Any]]]] = (
    (linear, (zeros(3, 2), zeros(2), zeros(3, 2))),
    (attention, (STATES, STATES.copy(), HEADS, HEADS, HEADS, zeros(1), ROWS, ROWS, zeros(3, 1, 2))),
    (rms_norm, (zeros(3, 2), zeros(2), zeros(3, 2))),
    (
        delta_rule,
        (zeros(6, 1, 2, 2), *(HEADS,) * 3, zeros(3, 1, 1), zeros(3, 1), ROWS, ROWS, zeros(3, 1, 2)),
    ),
    (
        short_convolution,
        (zeros(6, 2, 4), zeros(3, 2), zeros(2, 4), zeros(2), ROWS, ROWS, zeros(3, 2)),
    ),
)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("call", "buffers", "number"),
    [
        pytest.param(call, buffers, number, id=f"{call.__name__}-{number}")
        for call, buffers in CALLS
        for number in range(len(buffers))
    ],
)
def test_a_buffer_that_is_not_aligned_is_refused(
    isa: str, call: Callable[..., None], buffers: Sequence[NDArray[Any]], number: int
) -> None:
    call(isa, *buffers)
    changed = list(buffers)
    changed[number] = misaligned(buffers[number])
    with pytest.raises(ValueError, match="not aligned"):
        call(isa, *changed)
