"""Token embeddings that stay on disk: a step reads the rows of its tokens, and no others take memory."""

import json
import os
import struct
import weakref
from pathlib import Path

import torch
from torch import nn

from control_plane.errors import EngineError

_TORCH_DTYPE = {"F32": torch.float32, "BF16": torch.bfloat16}


class StoredEmbedding(nn.Module):
    """Replaces an nn.Embedding [vocabulary, H] whose weight lies in a file and is used by no other module."""

    def __init__(self, path: Path, name: str) -> None:
        """Read rows of the tensor `name` in a safetensors file. Raises `OSError`."""
        super().__init__()
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            entry = json.loads(file.read(length))[name]
        shape: tuple[int, int] = tuple(entry["shape"])
        self._vocabulary, self._size = shape
        self._dtype = _TORCH_DTYPE[entry["dtype"]]
        self._offset = 8 + length + entry["data_offsets"][0]
        self._path = path
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    @property
    def nbytes(self) -> int:
        """Bytes that the embeddings would take in memory."""
        return self._vocabulary * self._size * self._dtype.itemsize

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The rows [..., H] of tokens [...]. Raises `EngineError` if they cannot be read."""
        rows = torch.empty((input_ids.numel(), self._size), dtype=self._dtype)
        places = rows.view(torch.uint8).numpy()
        try:
            for place, token in zip(places, input_ids.ravel().tolist(), strict=True):
                if not 0 <= token < self._vocabulary:
                    raise EngineError(f"token {token} is not in the vocabulary of {self._vocabulary}")
                # Common tokens' rows come from the operating system's page cache while there is memory.
                if os.preadv(self._file, [place], self._offset + token * place.nbytes) != place.nbytes:
                    raise EngineError(f"{self._path} ends within the embedding of token {token}")
        except OSError as error:
            raise EngineError(f"cannot read embeddings from {self._path}: {error.strerror}") from error
        return rows.view(*input_ids.shape, self._size)
