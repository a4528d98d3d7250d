"""Plans of partitions whose experts are those of other families than the checkpoint's."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from control_plane.partition.checkpoint.tensors.tensor import Tensor
from control_plane.partition.model.architecture import MatrixEntry
from control_plane.partition.model.expert_tensors import ExpertTensors
from control_plane.partition.model.made_tensor import Matrix
from control_plane.partition.plan import Plan
from tests.support.models.expert_modules import ExpertModule


@dataclass(frozen=True)
class ArrayTensor(Tensor):
    """A tensor that is in memory."""

    values: NDArray[np.float32]

    def read(self, start: int, count: int) -> NDArray[Any]:
        return self.values[start : start + count]


def with_experts(plan: Plan, layers: Mapping[int, ExpertModule]) -> Plan:
    """The plan with these experts in place of its own, by layer."""
    first = next(iter(layers.values()))
    shape = replace(plan.shape, activation=first.activation, has_bias=first.has_bias)
    experts = {(layer, expert): _tensors(layers[layer], expert) for layer, expert in plan.experts}
    return replace(plan, shape=shape, experts=experts)


def _tensors(module: ExpertModule, expert: int) -> ExpertTensors:
    gate, up, down = (None if each is None else _matrix(each) for each in module.matrices(expert))
    assert up is not None
    assert down is not None
    biases = module.biases(expert)
    if biases is None:
        return ExpertTensors(gate, up, down)
    added = (None if each is None else _matrix(each[:, None]) for each in biases)
    return ExpertTensors(gate, up, down, *added)


def _matrix(values: NDArray[np.float32]) -> Matrix:
    tensor = ArrayTensor("values", Path("memory"), "F32", values.shape, values.reshape(-1))
    return Matrix(tensor, MatrixEntry("values", 0, 1), *values.shape)
