"""Token embeddings that stay on disk: a step reads the rows of its tokens, and no others take memory."""

import json
import os
import struct
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from control_plane.errors import EngineError, PartitionError

EMBEDDING = "model.embed_tokens.weight"
_DTYPE = {"F32": np.float32, "BF16": np.uint16}


class StoredEmbedding:
    """The rows of a tensor [vocabulary, H] in a safetensors file, bfloat16 as uint16."""

    def __init__(self, path: Path, name: str) -> None:
        """Read rows of the tensor `name`. Raises `OSError`, and `PartitionError` if there is none."""
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            entry = json.loads(file.read(length)).get(name)
        if entry is None:
            raise PartitionError(f"{path} lacks {name}")
        shape: tuple[int, int] = tuple(entry["shape"])
        self.shape = self._vocabulary, self._size = shape
        self._dtype = np.dtype(_DTYPE[entry["dtype"]])
        self._offset = 8 + length + entry["data_offsets"][0]
        self._path = path
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    @property
    def nbytes(self) -> int:
        """Bytes that the embeddings would take in memory."""
        return self._vocabulary * self._size * self._dtype.itemsize

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
