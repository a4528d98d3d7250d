"""What transformers knows of a checkpoint's model, as data: its tensors and modules, and what they compute.

`control_plane.architecture` finds it out in a process of its own, which imports torch and transformers;
everything else of a partition needs neither.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from msgspec import Meta, Struct
from msgspec.structs import asdict

from control_plane.partition.model.limits import MAX_LAYERS, Size
from control_plane.partition.model.program import Program
from control_plane.validation import convert
from functions.contract.manifest import MAX_EXPERTS
from functions.kernels.activation import Activation

Index = Annotated[int, Meta(ge=0, le=1 << 48)]
Way = Literal["program", "ragged", "lockstep"]
"""How the engine computes the dense part: by layer programs in C; by transformers' modules, all sequences'
rows together; or by transformers' modules, one sequence at a time."""


class RowRange(Struct, frozen=True, array_like=True):
    """Rows `first`, `first + step`, ... of a tensor, seen as a matrix with rows of its last dimension."""

    tensor: str
    first: Index
    step: Annotated[int, Meta(ge=1, le=1 << 48)]
    count: Index


class DenseEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor of the dense part, made of the checkpoint's."""

    shape: tuple[Index, ...]
    rows: tuple[RowRange, ...]
    keeps_f32: bool = False
    """Whether the family computes with it in float32, whatever the model's dtype."""


class MatrixEntry(Struct, frozen=True, array_like=True):
    """Where a matrix [N, K] of one expert is, in a tensor seen as a matrix of rows.

    Without a `column`, row i is the tensor's row `row + i * step`. With one, the matrix is stored transposed:
    row i is column `column + i * step` of the K rows from `row` on. A bias is a matrix of one column.
    """

    tensor: str
    row: Index
    step: Annotated[int, Meta(ge=1, le=1 << 48)]
    column: Index | None = None


class ExpertEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """The matrices of one expert: up [I, H], down [H, I], gate [I, H] if it has one, and their biases."""

    up: MatrixEntry
    down: MatrixEntry
    gate: MatrixEntry | None = None
    up_bias: MatrixEntry | None = None
    down_bias: MatrixEntry | None = None
    gate_bias: MatrixEntry | None = None


class ExpertLayer(Struct, frozen=True, forbid_unknown_fields=True):
    """A layer's experts."""

    number: Annotated[int, Meta(ge=0, le=MAX_LAYERS)]
    module: str
    """The name of their module in transformers' model."""
    experts: Annotated[tuple[ExpertEntry, ...], Meta(min_length=1, max_length=MAX_EXPERTS)]


class ActivationEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """What an expert computes between its products: the fields of an `Activation`."""

    function: str
    gated: bool
    limit: float | None
    alpha: float
    up_offset: float

    @classmethod
    def of(cls, activation: Activation) -> "ActivationEntry":
        # What is read back has floats, and the fingerprint is that of what was written.
        return convert(vars(activation), cls)

    @property
    def activation(self) -> Activation:
        """Raises ValueError for a function or numbers that no activation has."""
        return Activation(**asdict(self))


class Architecture(Struct, frozen=True, forbid_unknown_fields=True):
    """A model of transformers, as far as partitioning and serving need to know it."""

    model_type: str
    hidden_size: Size
    intermediate_size: Size
    num_experts: Annotated[int, Meta(ge=1, le=MAX_EXPERTS)]
    num_experts_per_tok: Annotated[int, Meta(ge=1, le=MAX_EXPERTS)]
    activation: ActivationEntry
    has_bias: bool
    layers: Annotated[tuple[ExpertLayer, ...], Meta(min_length=1, max_length=MAX_LAYERS)]
    """In ascending order."""
    dense: Mapping[str, DenseEntry]
    """By the name in transformers' model."""
    linears: tuple[str, ...]
    """Modules that are linear layers which every token reads in full."""
    gated_ffns: tuple[str, ...]
    """Modules that are down_proj(silu(gate_proj(x)) * up_proj(x)), of linear layers without biases."""
    unused: tuple[str, ...]
    """Tensors of the checkpoint that the model has no place for."""
    way: Way
    chunks_prompts: bool
    """Whether a prompt can be computed in parts."""
    program: Program | None = None
    """What the dense part computes, for the way "program"."""
