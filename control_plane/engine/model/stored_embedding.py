"""Token embeddings that stay on disk: a step reads the rows of its tokens, and no others take memory."""

import os
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from control_plane.engine.model.dense_file import DenseFile
from control_plane.errors import EngineError
from control_plane.partition.dense import EMBEDDING


class StoredEmbedding:
    """The rows of the embeddings [vocabulary, H] in a dense file, bfloat16 as uint16."""

    def __init__(self, file: DenseFile, name: str = EMBEDDING) -> None:
        """`name` is the tensor's. Raises `OSError`, and `PartitionError` for a file without it."""
        self._dtype, shape, self._offset, self.nbytes = file.stored(name)
        self.shape = self._vocabulary, self._size = shape
        self._path = file.path
        self._file = os.open(file.path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def rows(self, token_ids: Sequence[int]) -> NDArray[Any]:
        """The rows [T, H] of tokens. Raises `EngineError` if they cannot be read."""
        rows = np.empty((len(token_ids), self._size), self._dtype)
        try:
            for place, token in zip(rows.view(np.uint8), token_ids, strict=True):
                if not 0 <= token < self._vocabulary:
                    raise EngineError(f"token {token} is not in the vocabulary of {self._vocabulary}")
                # Common tokens' rows come from the operating system's page cache while there is memory.
                if os.preadv(self._file, [place], self._offset + token * place.nbytes) != place.nbytes:
                    raise EngineError(f"{self._path} ends within the embedding of token {token}")
        except OSError as error:
            raise EngineError(f"cannot read embeddings from {self._path}: {error.strerror}") from error
        return rows
