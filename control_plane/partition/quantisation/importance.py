"""How much the errors of an expert's weights count when they are quantised, by what a profile recorded.

The error of a product is the sum of the weights' errors times their inputs. Its mean square is least if the
squared error of each weight counts as much as the mean square of its input.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from functions.kernels.activation import SWIGLU, Activation
from functions.kernels.bfloat16 import Float32, as_f32
from functions.kernels.packed_expert import Biases, Importance

_POINTS, _SHARES = np.polynomial.hermite_e.hermegauss(15)
_ROWS = 32
"""Rows of gate and up that are squared at a time, which bounds temporary memory."""


def expert_importance(
    input_squares: Float32,
    gate: NDArray[Any] | None,
    up: NDArray[Any],
    activation: Activation = SWIGLU,
    biases: Biases | None = None,
) -> Importance:
    """The importance of the inputs of an expert's matrices.

    `gate` and `up` [I, H] are float32 or the bits of bfloat16; `gate` is None for an expert without.
    `input_squares` [H] are the mean squares of the expert's inputs.
    """
    return Importance(input_squares, down_importance(input_squares, gate, up, activation, biases))


def down_importance(
    input_squares: Float32,
    gate: NDArray[Any] | None,
    up: NDArray[Any],
    activation: Activation = SWIGLU,
    biases: Biases | None = None,
) -> Float32:
    """The estimated mean squares [I] of the inputs of down.

    It takes inputs for uncorrelated, and gate(x) and up(x) for independent normal variables around their
    biases. Mean squares of what the activation makes of them are integrated at the points of Gauss and
    Hermite.
    """
    ups = _outputs(up, input_squares, None if biases is None else biases.up)
    if gate is None:
        return _mean_squares(activation.of_gate(ups))
    gates = _outputs(gate, input_squares, None if biases is None else biases.gate)
    return _mean_squares(activation.of_gate(gates)) * _mean_squares(activation.of_up(ups))


def _outputs(matrix: NDArray[Any], input_squares: Float32, bias: NDArray[Any] | None) -> Float32:
    """The outputs [N, points] of a matrix [N, K] at which is integrated."""
    parts = (as_f32(matrix[first : first + _ROWS]) for first in range(0, len(matrix), _ROWS))
    deviations = np.sqrt(np.concatenate([np.square(part) @ input_squares for part in parts]))
    outputs: Float32 = (deviations[:, None] * _POINTS).astype(np.float32)
    return outputs if bias is None else outputs + as_f32(bias)[:, None]


def _mean_squares(values: Float32) -> Float32:
    """The mean squares [N] of values [N, points]."""
    squares: Float32 = np.square(values) @ (_SHARES / _SHARES.sum()).astype(np.float32)
    return squares
