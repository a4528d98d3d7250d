"""Every kernel of this machine against torch in float64, against the NumPy twin, and against itself."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import functions
from functions.expert.kernels import ExpertShape, available_isas, load_kernel
from functions.expert.kernels.packing import bf16_to_f32, f32_to_bf16, pack_expert, unpack_expert

PAIRS = [("f32", "f32"), ("bf16", "bf16"), ("int8", "f32"), ("int8", "bf16")]
COMPILED = [isa for isa in available_isas() if isa != "numpy"]

# Largest allowed error, as a share of the largest output. f32 differs by the order of sums. bf16 rounds the
# intermediate and the output to 8 bits, and int8 rounds activations to 1/127 of the largest in their group.
ERROR_TO_TORCH = {"f32": 1e-5, "bf16": 1.5e-2, "int8": 4e-2}
# The twin rounds at the same places; sums in another order may turn a rounding over, by one place.
ERROR_TO_TWIN = {"f32": 1e-5, "bf16": 8e-3, "int8": 8e-3}


@dataclass(frozen=True)
class Call:
    """A block of random experts, and rows that are routed to them."""

    shape: ExpertShape
    block: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    hidden_states: NDArray[Any]
    expert_index: NDArray[np.int16]
    expert_weight: NDArray[np.float32]

    def run(self, isa: str, **changes: Any) -> NDArray[Any]:
        arguments = vars(self) | changes
        return load_kernel(isa)(**arguments)

    def values(self, isa: str, **changes: Any) -> NDArray[np.float32]:
        return as_f32(self.run(isa, **changes))


def random_call(
    pair: tuple[str, str], hidden_size: int, intermediate_size: int, rows: int, top_k: int = 2, seed: int = 0
) -> Call:
    """Four experts that lie in the block out of order, with gaps and at odd places, and a fifth that is absent.
    One route in five or so goes nowhere."""
    random = np.random.default_rng(seed)
    shape = ExpertShape(hidden_size, intermediate_size, pair[0])
    offsets = np.array([2, 0, 3, 1, -1]) * (shape.nbytes + 37)
    offsets[-1] = -1
    block = np.full(4 * (shape.nbytes + 37), 255, np.uint8)
    for start in offsets[:-1]:
        gate, up = random.standard_normal((2, intermediate_size, hidden_size), np.float32) / hidden_size**0.5
        down = random.standard_normal((hidden_size, intermediate_size), np.float32) / intermediate_size**0.5
        block[start : start + shape.nbytes] = pack_expert(shape, gate, up, down)
    hidden_states = random.standard_normal((rows, hidden_size), np.float32)
    return Call(
        shape=shape,
        block=block,
        offsets=offsets,
        hidden_states=f32_to_bf16(hidden_states) if pair[1] == "bf16" else hidden_states,
        expert_index=random.integers(-1, 4, (rows, top_k), np.int16),
        expert_weight=random.random((rows, top_k), np.float32),
    )


def as_f32(states: NDArray[Any]) -> NDArray[np.float32]:
    return bf16_to_f32(states) if states.dtype == np.uint16 else states


def torch_reference(call: Call) -> NDArray[np.float64]:
    """The definition, row by row in float64, on the weights that the packed bytes stand for."""
    hidden = torch.from_numpy(as_f32(call.hidden_states)).double()
    out = torch.zeros_like(hidden)
    for t, k in np.argwhere(call.expert_index >= 0):
        start = call.offsets[call.expert_index[t, k]]
        packed = call.block[start : start + call.shape.nbytes].copy()
        gate, up, down = (torch.from_numpy(w).double() for w in unpack_expert(call.shape, packed))
        intermediate = torch.nn.functional.silu(gate @ hidden[t]) * (up @ hidden[t])
        out[t] += float(call.expert_weight[t, k]) * (down @ intermediate)
    return out.numpy()


def assert_close(found: NDArray[Any], expected: NDArray[Any], bound: float) -> None:
    assert found.shape == expected.shape
    largest = np.abs(expected).max(initial=0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound * largest + 1e-7)


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
@pytest.mark.parametrize("isa", available_isas())
@given(
    hidden_size=st.integers(1, 300),
    intermediate_size=st.integers(1, 300),
    rows=st.integers(1, 70),
    top_k=st.integers(1, 4),
    seed=st.integers(0, 99),
)
@settings(max_examples=12, deadline=None, derandomize=True)
def test_any_size_matches_torch_and_the_twin(
    isa: str, pair: tuple[str, str], hidden_size: int, intermediate_size: int, rows: int, top_k: int, seed: int
) -> None:
    call = random_call(pair, hidden_size, intermediate_size, rows, top_k, seed)
    found = call.values(isa)
    assert_close(found, torch_reference(call), ERROR_TO_TORCH[pair[0]])
    assert_close(found, call.values("numpy"), ERROR_TO_TWIN[pair[0]])
