"""How much the errors of an expert's weights count when they are quantised, by what a profile recorded.

The error of a product is the sum of the weights' errors times their inputs. Its mean square is least if the
squared error of each weight counts as much as the mean square of its input.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from functions.kernels.activations import as_f32, silu
from functions.kernels.bfloat16 import Float32
from functions.kernels.packed_expert import Importance

_POINTS, _SHARES = np.polynomial.hermite_e.hermegauss(15)
_ROWS = 32
"""Rows of gate and up that are squared at a time, which bounds temporary memory."""


def expert_importance(input_squares: Float32, gate: NDArray[Any], up: NDArray[Any]) -> Importance:
    """The importance of the inputs of an expert's matrices.

    `gate` and `up` [I, H] are float32 or the bits of bfloat16; `input_squares` [H] are the mean squares of
    the expert's inputs.
    """
    return Importance(input_squares, down_importance(input_squares, gate, up))


def down_importance(input_squares: Float32, gate: NDArray[Any], up: NDArray[Any]) -> Float32:
    """The estimated mean squares [I] of the inputs of down, silu(gate(x)) * up(x).

    It takes inputs for uncorrelated, and gate(x) and up(x) for independent normal variables around zero. The
    mean square of a normal variable's silu is integrated at the points of Gauss and Hermite.
    """
    gate_deviation = np.sqrt(_output_squares(gate, input_squares))
    gated = silu((gate_deviation[:, None] * _POINTS).astype(np.float32))
    silu_squares = np.square(gated) @ (_SHARES / _SHARES.sum()).astype(np.float32)
    estimate: Float32 = silu_squares * _output_squares(up, input_squares)
    return estimate


def _output_squares(matrix: NDArray[Any], input_squares: Float32) -> Float32:
    """The mean squares [N] of the outputs of a matrix [N, K], whose inputs have these mean squares [K]."""
    parts = (as_f32(matrix[first : first + _ROWS]) for first in range(0, len(matrix), _ROWS))
    return np.concatenate([np.square(part) @ input_squares for part in parts])
