"""Finds each expert's three matrices among a checkpoint's tensors, whichever way it stores them.

Per expert, each matrix is a tensor (`...experts.7.gate_proj.weight` [I, H], `up` likewise, `down` [H, I]);
fused, all experts of a layer share two (`...experts.gate_up_proj` [E, 2I, H], gate first, and
`...experts.down_proj` [E, H, I]).
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from control_plane.errors import PartitionError
from control_plane.partition.checkpoint.families import Family, ModelConfig
from control_plane.partition.checkpoint.reader import Checkpoint
from control_plane.partition.checkpoint.tensor_file import Tensor


@dataclass(frozen=True)
class Matrix:
    """`rows` x `columns` values of a tensor, from row `first_row` of all its rows on."""

    tensor: Tensor
    first_row: int
    rows: int
    columns: int

    def read(self) -> NDArray[Any]:
        """[rows, columns] as float32, or as uint16 holding the bits of bf16."""
        values = self.tensor.read(self.first_row * self.columns, self.rows * self.columns)
        return values.reshape(self.rows, self.columns)


@dataclass(frozen=True)
class ExpertTensors:
    """One expert's matrices: gate and up [I, H], down [H, I]."""

    gate: Matrix
    up: Matrix
    down: Matrix


ExpertKey = tuple[int, int]
"""(layer, expert)"""


def split_tensors(
    config: ModelConfig, checkpoint: Checkpoint
) -> tuple[dict[ExpertKey, ExpertTensors], dict[str, Tensor]]:
    """The routed experts of all MoE layers, and the tensors that belong to none: the dense part.

    Raises PartitionError when an expert's tensor is missing, has another shape than config.json says, or
    is one that this package does not know.
    """
    pattern = _expert_pattern(config.family)
    layers: dict[int, dict[str, Tensor]] = {layer: {} for layer in config.moe_layers}
    dense = {}
    for name, tensor in checkpoint.tensors.items():
        match = pattern.fullmatch(name)
        if match is None:
            dense[name] = tensor
        elif int(match["layer"]) in layers:
            layers[int(match["layer"])][match["key"]] = tensor
        else:
            raise PartitionError(f"{tensor.path}: {name}: config.json says that this layer has no experts")
    experts = {
        (layer, expert): tensors
        for layer, found in layers.items()
        for expert, tensors in enumerate(_Layer(checkpoint.folder, layer, found).experts(config))
    }
    return experts, dense


def _expert_pattern(family: Family) -> re.Pattern[str]:
    modules = "|".join(family.modules)
    return re.compile(rf"model\.layers\.(?P<layer>\d+)\.(?:{modules})\.experts\.(?P<key>.+)")


@dataclass(frozen=True)
class _Layer:
    """One layer's expert tensors by the end of their names, which are taken out one by one."""

    folder: Path
    layer: int
    found: dict[str, Tensor]

    def experts(self, config: ModelConfig) -> list[ExpertTensors]:
        fused = "gate_up_proj" in self.found or "down_proj" in self.found
        experts = self._fused(config) if fused else self._separate(config)
        for tensor in self.found.values():
            raise PartitionError(f"{tensor.path}: {tensor.name} is no expert tensor that config.json allows")
        return experts

    def _fused(self, config: ModelConfig) -> list[ExpertTensors]:
        count, hidden, width = config.num_experts, config.hidden_size, config.intermediate_size
        gate_up = self._take("gate_up_proj", (count, 2 * width, hidden))
        down = self._take("down_proj", (count, hidden, width))
        return [
            ExpertTensors(
                gate=Matrix(gate_up, 2 * expert * width, width, hidden),
                up=Matrix(gate_up, (2 * expert + 1) * width, width, hidden),
                down=Matrix(down, expert * hidden, hidden, width),
            )
            for expert in range(count)
        ]

    def _separate(self, config: ModelConfig) -> list[ExpertTensors]:
        family, hidden, width = config.family, config.hidden_size, config.intermediate_size

        def matrix(expert: int, name: str, rows: int, columns: int) -> Matrix:
            return Matrix(self._take(f"{expert}.{name}.weight", (rows, columns)), 0, rows, columns)

        return [
            ExpertTensors(
                gate=matrix(expert, family.gate, width, hidden),
                up=matrix(expert, family.up, width, hidden),
                down=matrix(expert, family.down, hidden, width),
            )
            for expert in range(config.num_experts)
        ]

    def _take(self, key: str, shape: tuple[int, ...]) -> Tensor:
        tensor = self.found.pop(key, None)
        if tensor is None:
            raise PartitionError(f"{self.folder}: layer {self.layer} has no tensor experts.{key}")
        if tensor.shape != shape:
            raise PartitionError(
                f"{tensor.path}: {tensor.name} is {list(tensor.shape)}, config.json says {list(shape)}"
            )
        return tensor
