"""Finds the three matrices of each expert among a checkpoint's tensors.

Checkpoints store experts in one of two ways. Separate: each matrix is a tensor, such as
`...experts.7.gate_proj.weight` (gate and up are [I, H], down is [H, I]). Fused: all experts of a layer
share two tensors, `...experts.gate_up_proj` [E, 2I, H], gate first, and `...experts.down_proj` [E, H, I].
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from control_plane.errors import PartitionError
from control_plane.partition.checkpoint.families import Family, ModelConfig
from control_plane.partition.checkpoint.reader import Checkpoint
from control_plane.partition.checkpoint.tensors.tensor import Tensor
from functions.kernels.packed_tiles import Quantised


@dataclass(frozen=True)
class Matrix:
    """Some rows of a tensor: `rows` of them, from `first_row` on."""

    tensor: Tensor
    first_row: int
    rows: int

    def read(self) -> NDArray[Any]:
        """The values [rows, columns], as float32 or as uint16 with the bits of bf16."""
        return self.tensor.rows(self.first_row, self.rows)

    def packable(self, dtype: str) -> NDArray[Any] | Quantised:
        """What is packed as that type: the values, or codes that the file has in it."""
        return self.tensor.packable_rows(self.first_row, self.rows, dtype)


@dataclass(frozen=True)
class ExpertTensors:
    """The matrices of one expert: gate and up [I, H], down [H, I]."""

    gate: Matrix
    up: Matrix
    down: Matrix


ExpertKey = tuple[int, int]
"""The indices (layer, expert) of an expert."""


def split_tensors(
    config: ModelConfig, checkpoint: Checkpoint
) -> tuple[dict[ExpertKey, ExpertTensors], dict[str, Tensor]]:
    """The routed experts of all MoE layers, and all other tensors by name: the dense part.

    Raises PartitionError if an expert's tensor is missing, has another shape than config.json says, or is
    unknown.
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
    """The expert tensors of one layer by the part of their names after `experts.`; `_take` removes them."""

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
                gate=Matrix(gate_up, 2 * expert * width, width),
                up=Matrix(gate_up, (2 * expert + 1) * width, width),
                down=Matrix(down, expert * hidden, hidden),
            )
            for expert in range(count)
        ]

    def _separate(self, config: ModelConfig) -> list[ExpertTensors]:
        family, hidden, width = config.family, config.hidden_size, config.intermediate_size

        def matrix(expert: int, name: str, rows: int, columns: int) -> Matrix:
            return Matrix(self._take(f"{expert}.{name}.weight", (rows, columns)), 0, rows)

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
