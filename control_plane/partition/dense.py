"""The dense part of a partition: which of its tensors are stored packed, and the bytes of each.

Tensors have the names of transformers' model. *Packed* weights are stored in the order in which a kernel
reads them (see `functions.kernels`): the matrices that every token reads in full, those of linear layers
and gated FFNs, and the head. The matrix of a linear layer is stored as `<module>.packed`; the three matrices
of a gated FFN are stored under one such name, in the layout of an expert. Routers, norms, biases and
embeddings are not packed. A head that shares the embeddings' weights is packed, too, and the embeddings stay
beside it: every token reads all of the head, but only one row of the embeddings.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from msgspec import Struct
from msgspec.structs import asdict
from numpy.typing import NDArray

from control_plane.errors import PartitionError
from control_plane.files import parse_json_object
from control_plane.partition.checkpoint.tensors.tensor import Tensor, common_type
from control_plane.partition.model.architecture import Architecture
from control_plane.partition.quantisation.dense_importance import DenseImportance
from control_plane.partition.recipes import DenseTypes, WeightTypes
from control_plane.partition.tensor_writer import TensorEntry
from control_plane.validation import MAX_QUOTED, Invalid, convert
from functions.kernels.bfloat16 import bf16_to_f32, f32_to_bf16
from functions.kernels.packed_expert import ExpertShape, packed_expert_parts
from functions.kernels.packed_matrix import LinearShape, Rows, packed_parts
from functions.kernels.packed_tiles import Bytes
from functions.kernels.packed_types import fits_activations
from functions.kernels.quantisation import Quantiser

PACKED = ".packed"
"""The suffix of a packed tensor's name, after the name of its module."""

EMBEDDING = "model.embed_tokens.weight"
"""The name of the token embeddings [vocabulary, H] in most families."""
HEAD = "lm_head"
"""The module of the head in most families."""


class PackedMatrix(Struct, frozen=True):
    """What the bytes of a packed matrix do not show: its shape, and the name of its weights' type."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class KeptTensor:
    """A tensor that is stored with its name and shape, as `dtype` ("f32" or "bf16")."""

    tensor: Tensor
    dtype: str

    @property
    def entry(self) -> TensorEntry:
        return TensorEntry(self.tensor.name, "BF16" if self.dtype == "bf16" else "F32", self.tensor.shape)

    def chunks(self, quantiser: Quantiser) -> Iterator[NDArray[Any]]:
        """The values in the order of the file, a few megabytes at a time. Raises PartitionError."""
        for values in self.tensor.chunks():
            yield _cast(values, self.dtype)


@dataclass(frozen=True)
class PackedLinearPlan:
    """The matrix [N, K] of a linear layer, to be packed as `dtype`."""

    module: str
    weight: Tensor
    dtype: str
    importance: DenseImportance | None

    @property
    def shape(self) -> LinearShape:
        outputs, inputs = self.weight.shape
        return LinearShape(outputs, inputs, self.dtype)

    @property
    def matrices(self) -> dict[str, PackedMatrix]:
        """The packed matrices by the names of their tensors."""
        return {f"{self.module}.weight": PackedMatrix(self.weight.shape, self.dtype)}

    @property
    def entry(self) -> TensorEntry:
        return TensorEntry(self.module + PACKED, "U8", (self.shape.nbytes,))

    def chunks(self, quantiser: Quantiser) -> Iterator[Bytes]:
        """The packed bytes in the order of the file, some tiles at a time. Raises PartitionError."""
        shape, inputs = self.shape, None
        if self.importance and shape.type.is_quantised:
            inputs = self.importance.of_linear(self.module)
        rows = _rows_of(self.weight, self.dtype)
        yield from _checked(self.module, packed_parts(shape, rows, inputs, quantiser))


@dataclass(frozen=True)
class PackedGatedPlan:
    """The matrices gate and up [I, H] and down [H, I] of a gated FFN, to be packed as one expert."""

    module: str
    gate: Tensor
    up: Tensor
    down: Tensor
    gate_up_dtype: str
    down_dtype: str
    importance: DenseImportance | None

    @property
    def shape(self) -> ExpertShape:
        hidden_size, intermediate_size = self.down.shape
        return ExpertShape(hidden_size, intermediate_size, self.gate_up_dtype, self.down_dtype)

    @property
    def matrices(self) -> dict[str, PackedMatrix]:
        """The packed matrices by the names of their tensors."""
        inward = (self.gate, self.up)
        return {
            **{tensor.name: PackedMatrix(tensor.shape, self.gate_up_dtype) for tensor in inward},
            self.down.name: PackedMatrix(self.down.shape, self.down_dtype),
        }

    @property
    def entry(self) -> TensorEntry:
        return TensorEntry(self.module + PACKED, "U8", (self.shape.nbytes,))

    def chunks(self, quantiser: Quantiser) -> Iterator[Bytes]:
        """The packed bytes in the order of the file, some tiles at a time. Raises PartitionError."""
        gate, up = (_rows_of(tensor, self.gate_up_dtype) for tensor in (self.gate, self.up))
        down = _rows_of(self.down, self.down_dtype)
        shape, inputs = self.shape, None
        if self.importance and shape.is_quantised:
            inputs = self.importance.of_gated(self.module)
        yield from _checked(self.module, packed_expert_parts(shape, gate, up, down, inputs, quantiser))


DenseTensor = KeptTensor | PackedLinearPlan | PackedGatedPlan

_Dense4 = tuple[str | None, str | None, str | None, str | None]


def stored_dense_types(architecture: Architecture, tensors: Mapping[str, Tensor]) -> _Dense4:
    """The types of packed weights that are nearest to the dense part's matrices, for `StoredTypes`."""
    found: dict[str, list[str | None]] = {"attention": [], "gate_up": [], "down": [], "head": []}
    for module in _plain_linears(architecture):
        role = "head" if module == HEAD else "attention"
        found[role].append(tensors[f"{module}.weight"].stored_type)
    for module in architecture.gated_ffns:
        for role, parts in (("gate_up", ("gate", "up")), ("down", ("down",))):
            found[role] += [tensors[f"{module}.{part}_proj.weight"].stored_type for part in parts]
    attention, gate_up, down, head = (common_type(types) for types in found.values())
    return attention, gate_up, down, head


def dense_tensors(
    architecture: Architecture,
    tensors: Mapping[str, Tensor],
    types: WeightTypes,
    importance: DenseImportance | None = None,
) -> list[DenseTensor]:
    """The tensors of the dense file, in its order; `tensors` are the model's.

    Raises PartitionError for shapes that do not fit together.
    """
    packed = list(_packed(architecture, tensors, types.dense, importance))
    replaced = {name for tensor in packed for name in tensor.matrices}
    # Sorted by name, so that the result does not depend on the checkpoint's shards. Packed tensors come
    # first: their sizes are multiples of 64 bytes, so the tensors behind them are aligned as well.
    kept = [
        KeptTensor(tensor, "f32" if architecture.dense[name].keeps_f32 else types.dtype)
        for name, tensor in sorted(tensors.items())
        if name not in replaced
    ]
    return [*packed, *kept]


def dense_metadata(tensors: Sequence[DenseTensor]) -> dict[str, str]:
    """The metadata of the dense file: its packed matrices, by the names of their tensors."""
    packed = [tensor for tensor in tensors if not isinstance(tensor, KeptTensor)]
    matrices = {name: asdict(matrix) for tensor in packed for name, matrix in tensor.matrices.items()}
    return {"format": "pt", "packed": json.dumps(matrices)}


def packed_matrices(metadata: Mapping[str, str], dtype: str) -> dict[str, PackedMatrix]:
    """The packed matrices by name, from the metadata that `dense_metadata` made.

    `dtype` is that of the activations. Raises PartitionError for other metadata, and for types of weights
    that do not fit these activations.
    """
    where = "the dense file's metadata"
    found = parse_json_object(metadata.get("packed", "{}").encode(), where)
    try:
        matrices = convert(found, dict[str, PackedMatrix])
    except Invalid as error:
        raise PartitionError(f"{where}: {error}") from error
    for name, matrix in matrices.items():
        if not fits_activations(matrix.dtype, dtype):
            problem = f"is {matrix.dtype[:MAX_QUOTED]!r}, not {dtype} or a quantised type"
            raise PartitionError(f"{where}: {name[:MAX_QUOTED]} {problem}")
    return matrices


def _packed(
    architecture: Architecture,
    tensors: Mapping[str, Tensor],
    types: DenseTypes,
    importance: DenseImportance | None,
) -> Iterator[PackedLinearPlan | PackedGatedPlan]:
    for module in sorted([*_plain_linears(architecture), *architecture.gated_ffns]):
        if module in architecture.gated_ffns:
            yield _gated(module, tensors, types, importance)
        else:
            weight = tensors[f"{module}.weight"]
            _check_matrix(weight)
            dtype = types.head if module == HEAD else types.attention
            yield PackedLinearPlan(module, weight, dtype, importance)


def _plain_linears(architecture: Architecture) -> set[str]:
    """Linear layers that are no part of a gated FFN."""
    parts = ("gate_proj", "up_proj", "down_proj")
    return set(architecture.linears) - {
        f"{module}.{part}" for module in architecture.gated_ffns for part in parts
    }


def _gated(
    module: str, tensors: Mapping[str, Tensor], types: DenseTypes, importance: DenseImportance | None
) -> PackedGatedPlan:
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
    return PackedGatedPlan(module, gate, up, down, types.gate_up, types.down, importance)


def _check_matrix(tensor: Tensor) -> None:
    if len(tensor.shape) != 2 or 0 in tensor.shape:
        raise PartitionError(f"{tensor.path}: {tensor.name} is {list(tensor.shape)}, not a matrix")


def _rows_of(tensor: Tensor, dtype: str) -> Rows:
    return lambda start, stop: tensor.packable_rows(start, stop - start, dtype)


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
