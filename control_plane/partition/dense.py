"""The dense part of a partition: which of its tensors are stored packed, and the bytes of each.

*Packed* weights are stored in the order in which a kernel reads them (see `functions.kernels`). With int8,
the matrices that every token reads in full are packed: those of attention, of shared experts, of layers
without experts, and the head. The matrix of a linear layer is stored as `<module>.packed`; the three
matrices of a gated FFN are stored under one such name, in the layout of an expert. Router, norms, biases and
embeddings are not packed.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from control_plane.errors import PartitionError
from control_plane.files import parse_json_object
from control_plane.partition.checkpoint.tensor_file import Tensor
from control_plane.partition.tensor_writer import TensorEntry
from control_plane.validation import Invalid, convert
from functions.kernels.bfloat16 import bf16_to_f32, f32_to_bf16
from functions.kernels.packed_expert import ExpertShape, packed_expert_parts
from functions.kernels.packed_matrix import LinearShape, Rows, packed_parts
from functions.kernels.packed_tiles import Bytes

PACKED = ".packed"
"""The suffix of a packed tensor's name, after the name of its module."""

_LINEAR = re.compile(r"(model\.layers\.\d+\.self_attn\.[qkvo]_proj|lm_head)\.weight")
_GATED = re.compile(r"(?P<module>model\.layers\.\d+\.mlp(\.shared_expert)?)\.gate_proj\.weight")


@dataclass(frozen=True)
class KeptTensor:
    """A tensor that is stored with its name and shape, as `dtype` ("f32" or "bf16")."""

    tensor: Tensor
    dtype: str

    @property
    def entry(self) -> TensorEntry:
        return TensorEntry(self.tensor.name, "BF16" if self.dtype == "bf16" else "F32", self.tensor.shape)

    def chunks(self) -> Iterator[NDArray[Any]]:
        """The values in the order of the file, a few megabytes at a time. Raises PartitionError."""
        for values in self.tensor.chunks():
            yield _cast(values, self.dtype)


@dataclass(frozen=True)
class PackedLinearPlan:
    """The matrix [N, K] of a linear layer, to be packed as int8."""

    module: str
    weight: Tensor

    @property
    def shape(self) -> LinearShape:
        outputs, inputs = self.weight.shape
        return LinearShape(outputs, inputs, "int8")

    @property
    def sources(self) -> tuple[Tensor, ...]:
        return (self.weight,)

    @property
    def entry(self) -> TensorEntry:
        return TensorEntry(self.module + PACKED, "U8", (self.shape.nbytes,))

    def chunks(self) -> Iterator[Bytes]:
        """The packed bytes in the order of the file, some tiles at a time. Raises PartitionError."""
        yield from _checked(self.module, packed_parts(self.shape, _rows_of(self.weight)))


@dataclass(frozen=True)
class PackedGatedPlan:
    """The matrices gate and up [I, H] and down [H, I] of a gated FFN, to be packed as one int8 expert."""

    module: str
    gate: Tensor
    up: Tensor
    down: Tensor

    @property
    def shape(self) -> ExpertShape:
        hidden_size, intermediate_size = self.down.shape
        return ExpertShape(hidden_size, intermediate_size, "int8", "int8")

    @property
    def sources(self) -> tuple[Tensor, ...]:
        return self.gate, self.up, self.down

    @property
    def entry(self) -> TensorEntry:
        return TensorEntry(self.module + PACKED, "U8", (self.shape.nbytes,))

    def chunks(self) -> Iterator[Bytes]:
        """The packed bytes in the order of the file, some tiles at a time. Raises PartitionError."""
        rows = (_rows_of(tensor) for tensor in (self.gate, self.up, self.down))
        yield from _checked(self.module, packed_expert_parts(self.shape, *rows))


DenseTensor = KeptTensor | PackedLinearPlan | PackedGatedPlan


def dense_tensors(
    tensors: Mapping[str, Tensor], dtype: str, dense_dtype: str, tied_head: bool
) -> list[DenseTensor]:
    """The tensors of the dense file, in its order.

    `dtype` is the dtype of tensors that are not packed. `dense_dtype` "int8" packs the large matrices, except
    the head if `tied_head`: then it is also the embeddings, which are not packed. Raises PartitionError for
    shapes that do not fit together.
    """
    packed = list(_packable(tensors, tied_head)) if dense_dtype == "int8" else []
    replaced = {source.name for tensor in packed for source in tensor.sources}
    # Sorted by name, so that the result does not depend on the checkpoint's shards. Packed tensors come
    # first: their sizes are multiples of 128 bytes, so the tensors behind them are aligned as well.
    kept = [KeptTensor(tensor, dtype) for name, tensor in sorted(tensors.items()) if name not in replaced]
    return [*packed, *kept]


def dense_metadata(tensors: Sequence[DenseTensor]) -> dict[str, str]:
    """The metadata of the dense file: the shapes of the packed matrices, which their bytes do not show."""
    shapes = {
        source.name: source.shape
        for tensor in tensors
        if not isinstance(tensor, KeptTensor)
        for source in tensor.sources
    }
    return {"format": "pt", "packed": json.dumps(shapes)} if shapes else {"format": "pt"}


def packed_shapes(metadata: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """The shapes of the packed matrices by name, from the metadata that `dense_metadata` made.

    Raises PartitionError for other metadata.
    """
    shapes = parse_json_object(metadata.get("packed", "{}").encode(), "the dense file's metadata")
    try:
        return convert(shapes, dict[str, tuple[int, ...]])
    except Invalid as error:
        raise PartitionError(f"the dense file's metadata: {error}") from error


def _packable(tensors: Mapping[str, Tensor], tied_head: bool) -> Iterator[PackedLinearPlan | PackedGatedPlan]:
    for name, tensor in sorted(tensors.items()):
        if (linear := _LINEAR.fullmatch(name)) and not (tied_head and name.startswith("lm_head")):
            _check_matrix(tensor)
            yield PackedLinearPlan(linear[1], tensor)
        elif gated := _GATED.fullmatch(name):
            yield _gated(gated["module"], tensors)


def _gated(module: str, tensors: Mapping[str, Tensor]) -> PackedGatedPlan:
    names = [f"{module}.{part}_proj.weight" for part in ("gate", "up", "down")]
    for name in names:
        if name not in tensors:
            raise PartitionError(f"{tensors[names[0]].path} has {names[0]}, but no {name}")
        _check_matrix(tensors[name])
    gate, up, down = (tensors[name] for name in names)
    for other in (gate, up):
        if other.shape != down.shape[::-1]:
            raise PartitionError(
                f"{other.path}: {other.name} is {list(other.shape)}, {down.name} is {list(down.shape)}"
            )
    return PackedGatedPlan(module, gate, up, down)


def _check_matrix(tensor: Tensor) -> None:
    if len(tensor.shape) != 2 or 0 in tensor.shape:
        raise PartitionError(f"{tensor.path}: {tensor.name} is {list(tensor.shape)}, not a matrix")


def _rows_of(tensor: Tensor) -> Rows:
    columns = tensor.shape[1]
    return lambda start, stop: tensor.read(start * columns, (stop - start) * columns).reshape(-1, columns)


def _checked(module: str, parts: Iterator[Bytes]) -> Iterator[Bytes]:
    """The parts of a packed module. Raises PartitionError for weights that cannot be packed."""
    try:
        yield from parts
    except ValueError as error:
        raise PartitionError(f"{module}: {error}") from error


def _cast(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Convert values that are float32, or uint16 with the bits of bf16, to `dtype`."""
    if dtype == "bf16":
        return f32_to_bf16(values) if values.dtype == np.float32 else values
    return bf16_to_f32(values) if values.dtype == np.uint16 else values
