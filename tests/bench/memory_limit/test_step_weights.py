"""Bytes of weights that a decode step uses, for models that are easy to count."""

import json
import struct
from pathlib import Path

import numpy as np

from bench.memory_limit.step_weights import StepWeights, used_dense_bytes


def test_each_expert_is_read_once_for_a_step() -> None:
    weights = StepWeights(1000, 10, np.array([[1.0, 0.5, 0.5], [1.0, 1.0, 0.0]]))
    assert weights.nbytes(1) == 1000 + 10 * 4
    assert weights.nbytes(2) == 1000 + 10 * (3 + 2 * 0.75)


def test_a_step_does_not_read_the_embeddings(tmp_path: Path) -> None:
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "model.embed_tokens.weight": {"dtype": "U8", "shape": [100], "data_offsets": [0, 100]},
            "lm_head.packed": {"dtype": "U8", "shape": [30], "data_offsets": [100, 130]},
        }
    ).encode()
    file = tmp_path / "dense.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(130))
    assert used_dense_bytes(file) == 30
