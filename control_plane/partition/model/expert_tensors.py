"""The matrices of each expert, among a checkpoint's tensors."""

from collections.abc import Mapping
from dataclasses import dataclass

from control_plane.partition.checkpoint.tensors.tensor import Tensor
from control_plane.partition.model.architecture import Architecture, ExpertEntry, MatrixEntry
from control_plane.partition.model.made_tensor import Matrix
from functions.kernels.packed_expert import Biases


@dataclass(frozen=True)
class ExpertTensors:
    """The matrices of one expert: gate and up [I, H], down [H, I]; biases are matrices of one column."""

    gate: Matrix | None
    up: Matrix
    down: Matrix
    gate_bias: Matrix | None = None
    up_bias: Matrix | None = None
    down_bias: Matrix | None = None

    def read_biases(self) -> Biases | None:
        """The biases; None for an expert without."""
        if self.up_bias is None or self.down_bias is None:
            return None
        gate = None if self.gate_bias is None else self.gate_bias.read().reshape(-1)
        return Biases(gate, self.up_bias.read().reshape(-1), self.down_bias.read().reshape(-1))


ExpertKey = tuple[int, int]
"""The indices (layer, expert) of an expert."""


def expert_tensors(
    architecture: Architecture, tensors: Mapping[str, Tensor]
) -> dict[ExpertKey, ExpertTensors]:
    """All routed experts of a model. Raises PartitionError for tensors that they do not fit into."""
    return {
        (layer.number, expert): _of(architecture, entry, tensors)
        for layer in architecture.layers
        for expert, entry in enumerate(layer.experts)
    }


def _of(architecture: Architecture, entry: ExpertEntry, tensors: Mapping[str, Tensor]) -> ExpertTensors:
    hidden, width = architecture.hidden_size, architecture.intermediate_size

    def matrix(found: MatrixEntry | None, rows: int, columns: int) -> Matrix | None:
        return Matrix.of(tensors, found, rows, columns) if found else None

    return ExpertTensors(
        gate=matrix(entry.gate, width, hidden),
        up=Matrix.of(tensors, entry.up, width, hidden),
        down=Matrix.of(tensors, entry.down, hidden, width),
        gate_bias=matrix(entry.gate_bias, width, 1),
        up_bias=matrix(entry.up_bias, width, 1),
        down_bias=matrix(entry.down_bias, hidden, 1),
    )
