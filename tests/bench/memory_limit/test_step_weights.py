"""Bytes of weights that a decode step uses, for models that are easy to count."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from bench.memory_limit.step_weights import StepWeights, used_dense_bytes


def test_each_expert_is_read_once_for_a_step() -> None:
    weights = StepWeights(1000, 10, np.array([[1.0, 0.5, 0.5], [1.0, 1.0, 0.0]]))
    assert weights.nbytes(1) == 1000 + 10 * 4
    assert weights.nbytes(2) == 1000 + 10 * (3 + 2 * 0.75)


@pytest.mark.parametrize(("head", "expected"), [("lm_head.packed", 30), ("model.norm.weight", 130)])
def test_a_step_reads_embeddings_only_if_the_head_shares_them(
    tmp_path: Path, head: str, expected: int
) -> None:
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "model.embed_tokens.weight": {"dtype": "U8", "shape": [100], "data_offsets": [0, 100]},
            head: {"dtype": "U8", "shape": [30], "data_offsets": [100, 130]},
        }
    ).encode()
    file = tmp_path / "dense.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(130))
    assert used_dense_bytes(file) == expected
