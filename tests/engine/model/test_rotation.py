"""Rotary embeddings equal transformers'."""

from typing import Any

import numpy as np
import pytest
import torch

from control_plane.architecture.choice import architecture_of
from control_plane.engine.model.rotation import Rotation
from functions.kernels.bfloat16 import bf16_to_f32
from tests.support.models.checkpoints import tiny_model

ROPES: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "default", "rope_theta": 1e6},
    {"rope_type": "linear", "factor": 2.5},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    {"rope_type": "yarn", "factor": 2.0, "truncate": False, "mscale": 0.7, "mscale_all_dim": 0.4},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
]


@pytest.mark.parametrize("rope", ROPES, ids=str)
def test_cosines_and_sines_are_transformers(rope: dict[str, Any]) -> None:
    model = tiny_model("mixtral", head_dim=12, rope_parameters={"rope_theta": 10000.0, **rope})
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    program = architecture_of(model.config.to_dict(), shapes).program
    assert program is not None
    (entry,) = program.rotations
    positions = np.array([0, 1, 5, 63, 127, 1000])
    expected = model.model.rotary_emb(torch.zeros(1), torch.from_numpy(positions)[None])
    found = Rotation.of(entry, "f32").at(positions)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs[0].numpy(), rtol=0, atol=1e-6)
    rounded = Rotation.of(entry, "bf16").at(positions)
    for ours, exact in zip(rounded, found, strict=True):
        np.testing.assert_allclose(bf16_to_f32(ours), exact, rtol=2**-8)
