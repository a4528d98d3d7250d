"""Shared by the tests of kernels: dtypes, bounds of errors, and the rounding of activations."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from functions.kernels import Activation, available_isas
from functions.kernels.bfloat16 import bf16_to_f32
from functions.kernels.packed_types import PACKED_TYPES
from tests.support.paths import ROOT

QUANTISED = [name for name, each in PACKED_TYPES.items() if each.is_quantised]
PAIRS = [
    ("f32", "f32"),
    ("bf16", "bf16"),
    ("int8", "f32"),
    ("int8", "bf16"),
    ("int4", "f32"),
    ("int4_nl", "f32"),
    ("mxfp4", "f32"),
    ("int4_min", "f32"),
    ("int4_min", "bf16"),
]
"""Pairs of dtypes: of weights, and of activations."""
COMPILED = [isa for isa in available_isas() if isa != "numpy"]

ERROR_TO_TORCH = {"f32": 1e-5, "bf16": 1e-2, **dict.fromkeys(QUANTISED, 1e-2)}
"""Largest allowed error by weight dtype, as a share of the largest output, against torch in float64 on packed
weights and rounded activations. Sums in another order may round an activation to the neighbouring value."""
ERROR_TO_TWIN = {"f32": 1e-5, "bf16": 5e-3, **dict.fromkeys(QUANTISED, 1e-2)}
"""Largest allowed error by weight dtype, as a share of the largest output, against the NumPy twin."""
ERROR_OF_ROUNDING = {"bf16": 1e-2, **dict.fromkeys(QUANTISED, 3e-2)}
"""Largest allowed error by weight dtype, as a share of the largest output, against unrounded activations.

bf16 rounds them to 8 bits, quantised types to 1/127 of the largest of 32. The bound holds for sums of
many products only: other outputs may be arbitrarily close to 0.
"""


def worth_a_team(nbytes: int) -> bool:
    """Whether several threads compute a call that reads so many bytes, each as often as rows use it."""
    source = (ROOT / "functions/kernels/csrc/team.h").read_text()
    found = re.search(r"#define WORTH_A_TEAM \((\d+) << (\d+)\)", source)
    assert found
    return nbytes >= int(found[1]) << int(found[2])


def as_f32(states: NDArray[Any]) -> NDArray[np.float32]:
    return bf16_to_f32(states) if states.dtype == np.uint16 else states


def rounded(activations: torch.Tensor, weight_dtype: str) -> torch.Tensor:
    """float64 activations [T, K] as products with weights of this dtype use them, in float64.

    bf16 weights have bfloat16 activations, quantised ones multiples of absmax / 127 of 32 neighbours. Scales
    and quotients are float32, as bfloat16 activations often lie exactly between two multiples.
    """
    if weight_dtype == "f32":
        return activations
    if weight_dtype == "bf16":
        return activations.bfloat16().double()
    groups = []
    for start in range(0, activations.shape[1], 32):
        group = activations[:, start : start + 32].float()
        scale = group.abs().amax(dim=1, keepdim=True) / 127
        divisor = torch.where(scale > 0, scale, 1)
        groups.append((group / divisor).round().double() * scale.double())
    return torch.cat(groups, dim=1)


def torch_activation(activation: Activation, *columns: torch.Tensor) -> torch.Tensor:
    """What torch makes of gate and up, or of up alone, of any shape."""
    first, up = columns[0], columns[-1]
    if activation.limit is not None:
        first, up = first.clamp(max=activation.limit), up.clamp(-activation.limit, activation.limit)
    functions: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "silu": lambda x: x * torch.sigmoid(activation.alpha * x),
        "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        "gelu": torch.nn.functional.gelu,
        "relu": torch.relu,
        "relu2": lambda x: torch.relu(x).square(),
    }
    result = functions[activation.function](first)
    return result * (up + activation.up_offset) if activation.gated else result


def assert_close(found: NDArray[Any], expected: NDArray[Any], bound: float) -> None:
    """Fail if an error exceeds `bound`, a share of the largest expected value."""
    assert found.shape == expected.shape
    largest = np.abs(expected).max(initial=0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound * largest + 1e-7)


def misaligned(array: NDArray[Any]) -> NDArray[Any]:
    """A copy whose memory begins at an odd address."""
    return np.frombuffer(bytearray(1) + array.tobytes(), array.dtype, offset=1).reshape(array.shape)
