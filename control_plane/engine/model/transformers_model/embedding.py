"""Token embeddings of a transformers model that stay in the dense file."""

from typing import Any

import torch
from torch import nn

from control_plane.engine.model.stored_embedding import StoredEmbedding
from control_plane.engine.model.transformers_model.tensor_views import to_torch


class EmbeddingInFile(nn.Embedding):
    """An embedding [vocabulary, H] that reads the rows of its tokens from a file."""

    stored: StoredEmbedding

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The rows [..., H] of tokens [...]. Raises `EngineError` if they cannot be read."""
        rows = to_torch(self.stored.rows(input.ravel().tolist()))
        return rows.view(*input.shape, rows.shape[1])


def keep_in_file(embedding: Any, stored: StoredEmbedding) -> None:
    """Have an `nn.Embedding` read its rows from the file.

    A family's own kind of embedding changes what `nn.Embedding` returns, and then changes what is read.
    """
    own: Any = type(embedding)
    kept: Any = EmbeddingInFile
    embedding.__class__ = kept if own is nn.Embedding else type(own.__name__, (own, kept), {})
    embedding.stored = stored
