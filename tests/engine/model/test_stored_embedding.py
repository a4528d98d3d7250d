"""Embeddings read from a file equal those in memory."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from control_plane.engine.model.dense_file import DenseFile
from control_plane.engine.model.reference.layers import EmbeddingModule
from control_plane.engine.model.stored_embedding import StoredEmbedding
from control_plane.errors import EngineError
from control_plane.partition.dense import EMBEDDING


def stored(path: Path, weight: torch.Tensor) -> StoredEmbedding:
    save_file({"before": torch.zeros(3), EMBEDDING: weight}, path)
    return StoredEmbedding(DenseFile(path, "f32"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 3), (0,)])
def test_rows_are_those_of_an_embedding_in_memory(
    tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    weight = torch.randn(50, 24).to(dtype)
    ids = torch.randint(50, shape)
    found = EmbeddingModule(stored(tmp_path / "file", weight))(ids)
    assert torch.equal(found, torch.nn.functional.embedding(ids, weight))
    assert found.dtype == dtype


@pytest.mark.parametrize("token", [-1, 50])
def test_a_token_outside_the_vocabulary_is_an_error(tmp_path: Path, token: int) -> None:
    with pytest.raises(EngineError, match="vocabulary"):
        stored(tmp_path / "file", torch.randn(50, 24)).rows([0, token])


def test_a_file_that_was_cut_is_an_error(tmp_path: Path) -> None:
    embedding = stored(tmp_path / "file", torch.randn(50, 24))
    os.truncate(tmp_path / "file", 300)
    with pytest.raises(EngineError, match="ends"):
        embedding.rows([49])
