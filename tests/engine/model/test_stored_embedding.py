"""Embeddings read from a file equal those in memory."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from control_plane.engine.model.dense_file import DenseFile
from control_plane.engine.model.stored_embedding import StoredEmbedding
from control_plane.engine.model.transformers_model.embedding import keep_in_file
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
    embedding = torch.nn.Embedding(50, 24)
    keep_in_file(embedding, stored(tmp_path / "file", weight))
    found = embedding(ids)
    assert torch.equal(found, torch.nn.functional.embedding(ids, weight))
    assert found.dtype == dtype


class Scaled(torch.nn.Embedding):
    """As families have them that multiply embeddings with a number."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 3


def test_a_family_s_own_embedding_changes_the_rows_of_the_file(tmp_path: Path) -> None:
    weight, ids = torch.randn(50, 24), torch.tensor([4, 2])
    embedding = Scaled(50, 24)
    keep_in_file(embedding, stored(tmp_path / "file", weight))
    assert torch.equal(embedding(ids), weight[ids] * 3)
    assert isinstance(embedding, Scaled)


@pytest.mark.parametrize("token", [-1, 50])
def test_a_token_outside_the_vocabulary_is_an_error(tmp_path: Path, token: int) -> None:
    with pytest.raises(EngineError, match="vocabulary"):
        stored(tmp_path / "file", torch.randn(50, 24)).rows([0, token])


def test_a_file_that_was_cut_is_an_error(tmp_path: Path) -> None:
    embedding = stored(tmp_path / "file", torch.randn(50, 24))
    os.truncate(tmp_path / "file", 300)
    with pytest.raises(EngineError, match="ends"):
        embedding.rows([49])
