"""The tensors of GGUF files, by the names that the files have for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from control_plane.errors import PartitionError, UnsupportedModel
from control_plane.partition.checkpoint.gguf.blocks import BLOCK_TYPES, PLAIN_TYPES, BlockType
from control_plane.partition.checkpoint.gguf.container import GgufHeader, TensorInfo
from control_plane.partition.checkpoint.tensors.safetensors_file import StoredTensor, read_into
from control_plane.partition.checkpoint.tensors.tensor import RowTensor, Tensor
from functions.kernels.packed_tiles import Quantised

MAX_COLUMNS = 1 << 24
"""The longest row."""


@dataclass(frozen=True)
class BlockTensor(RowTensor):
    """A quantised tensor, whose blocks start at byte `offset` of the file."""

    offset: int
    kind: BlockType

    @property
    def nbytes(self) -> int:
        """The bytes of its blocks."""
        return self.size // self.kind.block_values * self.kind.block_nbytes

    @property
    def stored_type(self) -> str | None:
        return self.kind.stored_type

    def _read_rows(self, first: int, count: int) -> NDArray[Any]:
        blocks = self._blocks(first, count)
        return self.kind.groups(blocks.reshape(-1, self.kind.block_nbytes)).values().reshape(count, -1)

    def read_quantised(self, first: int, count: int) -> Quantised | None:
        return self.kind.carried(self._blocks(first, count)) if self.kind.carried else None

    def _blocks(self, first: int, count: int) -> NDArray[np.uint8]:
        """The blocks of rows, [count, blocks of a row, bytes of a block]."""
        row = self.columns // self.kind.block_values
        blocks = np.empty((count, row, self.kind.block_nbytes), np.uint8)
        read_into(self.path, self.offset + first * row * self.kind.block_nbytes, blocks.reshape(-1))
        return blocks


def tensors_of(headers: Sequence[GgufHeader]) -> dict[str, Tensor]:
    """The tensors of a model's files, by GGUF's names.

    Raises PartitionError for tensors that are not within their file, or overlap there, or its
    UnsupportedModel for a type that cannot be read.
    """
    found: dict[str, Tensor] = {}
    for header in headers:
        for tensor in _of_file(header):
            if tensor.name in found:
                other = found[tensor.name].path.name
                raise PartitionError(f"{header.path} and {other} both have {tensor.name[:80]!r}")
            found[tensor.name] = tensor
    return found


def _of_file(header: GgufHeader) -> list[StoredTensor | BlockTensor]:
    tensors = [_tensor(header, info) for info in header.tensors]
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        if tensor.offset < end:
            raise PartitionError(f"{header.path}: {tensor.name[:80]!r} overlaps its neighbour")
        end = tensor.offset + tensor.nbytes
    if end > header.size:
        raise PartitionError(
            f"{header.path} is truncated: its header describes {end} bytes, it has {header.size}"
        )
    return tensors


def _tensor(header: GgufHeader, info: TensorInfo) -> StoredTensor | BlockTensor:
    columns = info.shape[-1]
    if columns > MAX_COLUMNS:
        raise PartitionError(f"{header.path}: {info.name[:80]!r} has rows of {columns} values")
    if info.type_number in PLAIN_TYPES:
        dtype = PLAIN_TYPES[info.type_number]
        return StoredTensor(info.name, header.path, dtype, info.shape, info.offset)
    if info.type_number not in BLOCK_TYPES:
        types = ", ".join([*PLAIN_TYPES.values(), *(kind.name for kind in BLOCK_TYPES.values())])
        raise UnsupportedModel(
            f"{header.path}: {info.name[:80]!r} is of type {info.type_number}; these can be read: {types}"
        )
    kind = BLOCK_TYPES[info.type_number]
    if columns % kind.block_values:
        raise PartitionError(
            f"{header.path}: {info.name[:80]!r} is {kind.name}, but has rows of {columns} values"
        )
    # Models compute in bf16 unless their file is of another plain type.
    return BlockTensor(info.name, header.path, "BF16", info.shape, info.offset, kind)


def plain_dtype(tensors: Mapping[str, Tensor]) -> str:
    """The dtype in which a file's model computes: that of its matrices, or bf16 if they are quantised."""
    matrices = {tensor.dtype for tensor in tensors.values() if len(tensor.shape) > 1}
    return "BF16" if "BF16" in matrices else "F16" if "F16" in matrices else "F32"
