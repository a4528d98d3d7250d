"""What a profile recorded makes the errors of quantised experts smaller where they matter."""

from pathlib import Path

import numpy as np
import pytest
import torch

from control_plane.partition.granularity import Granularity
from control_plane.partition.partitioner import partition
from control_plane.partition.profile import Profile
from control_plane.partition.quantisation.importance import down_importance
from functions.kernels.activation import Activation
from functions.kernels.bfloat16 import Float32, f32_to_bf16
from functions.kernels.packed_expert import Biases, ExpertShape, unpack_expert
from tests.support.functions.kernels import torch_activation
from tests.support.models.tiny_partition import TinyPartition

LAYERS, EXPERTS, HIDDEN_SIZE = 3, 5, 24


def uneven(*size: int) -> Float32:
    """Mean squares of which few are large."""
    return np.exp(3 * np.random.default_rng(0).normal(size=size)).astype(np.float32)


def test_the_estimate_is_near_what_normal_inputs_give() -> None:
    random = np.random.default_rng(0)
    gate, up = random.normal(size=(2, 40, 64)).astype(np.float32) * np.float32(0.2)
    squares = np.exp(random.normal(size=64)).astype(np.float32)
    rows = random.normal(size=(50000, 64)).astype(np.float32) * np.sqrt(squares)
    gated = torch.nn.functional.silu(torch.from_numpy(rows @ gate.T)).numpy()
    measured = np.square(gated * (rows @ up.T)).mean(axis=0)
    estimate = down_importance(squares, gate, up)
    assert estimate.dtype == np.float32
    # Gate and up of one input are not quite independent.
    np.testing.assert_allclose(estimate, measured, rtol=0.5)
    assert np.corrcoef(estimate, measured)[0, 1] > 0.95


@pytest.mark.parametrize(
    "activation",
    [
        Activation(limit=1.5, alpha=1.702, up_offset=1.0),
        Activation("gelu"),
        Activation("gelu_tanh"),
        Activation("relu2", gated=False),
    ],
    ids=str,
)
def test_the_estimate_is_that_of_the_activation_and_the_biases(activation: Activation) -> None:
    random = np.random.default_rng(0)
    gate, up = random.normal(size=(2, 40, 64)).astype(np.float32) * np.float32(0.1)
    gate[:, 32:] = up[:, :32] = 0  # so that they are independent
    gate_bias, up_bias = random.normal(size=(2, 40)).astype(np.float32)
    squares = np.exp(random.normal(size=64)).astype(np.float32)
    rows = random.normal(size=(50000, 64)).astype(np.float32) * np.sqrt(squares)
    columns = [rows @ up.T + up_bias]
    if activation.gated:
        columns.insert(0, rows @ gate.T + gate_bias)
    inputs = torch_activation(activation, *map(torch.from_numpy, columns)).numpy()
    measured = np.square(inputs).mean(axis=0)
    biases = Biases(gate_bias, up_bias, np.zeros(64, np.float32))
    estimate = down_importance(squares, gate if activation.gated else None, up, activation, biases)
    assert estimate.dtype == np.float32
    np.testing.assert_allclose(estimate, measured, rtol=0.1, atol=1e-3 * measured.max())


def test_the_estimate_reads_bf16() -> None:
    gate, up = np.random.default_rng(0).normal(size=(2, 300, 16)).astype(np.float32)
    squares = uneven(16)
    estimate = down_importance(squares, f32_to_bf16(gate), f32_to_bf16(up))
    np.testing.assert_allclose(estimate, down_importance(squares, gate, up), rtol=0.1)


@pytest.mark.parametrize("layer", range(LAYERS))
def test_a_profile_lowers_the_errors_that_count(tiny: TinyPartition, tmp_path: Path, layer: int) -> None:
    use, together = np.ones((LAYERS, EXPERTS), np.int64), np.zeros((LAYERS, EXPERTS, EXPERTS), np.int64)
    profile = Profile("tiny", use, together, uneven(LAYERS, HIDDEN_SIZE))
    checkpoint = tiny.folder.parent / "model"
    errors = []
    for name, given in (("without", None), ("with", profile)):
        manifest = partition(
            checkpoint, tmp_path / name, granularity=Granularity(EXPERTS, LAYERS), dtype="int4", profile=given
        )
        (block,) = manifest.blocks
        shape = ExpertShape(
            manifest.hidden_size, manifest.intermediate_size, manifest.gate_up_dtype, manifest.down_dtype
        )
        content = np.fromfile(tmp_path / name / block.file, np.uint8)
        gate, _, _ = unpack_expert(shape, content[block.expert_offset(layer, 0) :])
        gate_up = tiny.model.model.layers[layer].mlp.experts.gate_up_proj[0].detach().numpy()
        difference = gate - gate_up[: len(gate)]
        errors.append(np.square(difference) @ profile.input_squares[layer])
    plain, weighted = (error.sum() for error in errors)
    assert weighted < 0.8 * plain
