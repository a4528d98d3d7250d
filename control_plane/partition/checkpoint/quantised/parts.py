"""The stored tensors of a quantised checkpoint, of which its matrices are made."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from control_plane.errors import PartitionError
from control_plane.partition.checkpoint.quantised.floats import E4M3, E8M0
from control_plane.partition.checkpoint.tensors.safetensors_file import StoredTensor
from functions.kernels.bfloat16 import Float32, as_f32

MAX_COLUMNS = 1 << 20
"""The longest row of a quantised tensor."""
SCALES = ("F32", "F16", "BF16")
"""The dtypes of scales that are plain numbers."""

_COLUMNS_AT_ONCE = 4 << 20
"""The bytes of a tensor that are read at a time for some of its columns."""


@dataclass(frozen=True)
class Parts:
    """The tensors by name that have not been used for a matrix yet; `take` removes them."""

    left: dict[str, StoredTensor]

    def take(self, name: str, dtypes: Collection[str], shape: tuple[int, ...] | None = None) -> StoredTensor:
        """A tensor with one of these dtypes, and of this shape. Raises PartitionError."""
        tensor = self.left.pop(name, None)
        if tensor is None:
            where = next(iter(self.left.values())).path.parent if self.left else "the checkpoint"
            raise PartitionError(f"{where} has no {name}, which its quantised weights need")
        if tensor.dtype not in dtypes:
            raise PartitionError(f"{tensor.path}: {name} has dtype {tensor.dtype}, not {' or '.join(dtypes)}")
        if shape is not None and tensor.shape != shape:
            raise misfit(tensor, list(shape))
        return tensor

    def find(self, *names: str) -> str | None:
        """The first of these names that there is."""
        return next((name for name in names if name in self.left), None)

    def drop(self, *names: str) -> None:
        """Remove tensors that no matrix needs, such as the scales of activations."""
        for name in names:
            self.left.pop(name, None)


def misfit(tensor: StoredTensor, wanted: object) -> PartitionError:
    """The error for a tensor of another shape than the others of its matrix need."""
    return PartitionError(f"{tensor.path}: {tensor.name} is {list(tensor.shape)}, not {wanted}")


def check_matrix(tensor: StoredTensor, dimensions: Collection[int] = (2,)) -> None:
    """Raise PartitionError unless the tensor has rows of a length that can be read at once."""
    shape = tensor.shape
    if len(shape) not in dimensions or 0 in shape or shape[-1] > MAX_COLUMNS:
        raise PartitionError(f"{tensor.path}: {tensor.name} is {list(shape)}, which is no quantised matrix")


def stored_rows(tensor: StoredTensor, first: int, count: int) -> NDArray[np.generic]:
    """Rows of a tensor, as they are stored. Raises PartitionError."""
    columns = tensor.columns
    return tensor.read_stored(first * columns, count * columns).reshape(count, columns)


def stored_columns(tensor: StoredTensor, first: int, count: int) -> NDArray[np.generic]:
    """Columns [N, count] of a tensor [N, K], as they are stored. Raises PartitionError.

    The whole tensor is read for them, some rows at a time.
    """
    rows = tensor.shape[0]
    at_once = max(1, _COLUMNS_AT_ONCE * rows // max(1, tensor.nbytes))
    parts = [
        stored_rows(tensor, row, min(at_once, rows - row))[:, first : first + count]
        for row in range(0, rows, at_once)
    ]
    return np.concatenate(parts)


def numbers(tensor: StoredTensor, stored: NDArray[np.generic]) -> Float32:
    """What a tensor's stored numbers stand for. Bytes are exponents, as in E8M0."""
    if tensor.dtype in ("F8_E8M0", "U8", "F8_E4M3"):
        values: Float32 = (E4M3 if tensor.dtype == "F8_E4M3" else E8M0)[stored]
        return values
    return as_f32(stored) if tensor.dtype == "BF16" else stored.astype(np.float32)
