"""Finds a model's experts by the mark of transformers' experts interface, and what they compute by trying."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import nn

from control_plane.errors import UnsupportedModel
from functions.kernels.activation import FUNCTIONS, Activation

_MARK = "_is_expert_parallel"
"""An attribute that only modules of the interface have."""
_ROWS, _COLUMNS = 64, 32
TOLERANCE = 1e-5


@dataclass(frozen=True)
class ExpertModule:
    """The experts of one layer."""

    name: str
    layer: int
    module: Any

    @property
    def gate_up(self) -> str:
        """The name of the first matrix's parameter."""
        return "gate_up_proj" if self.module.has_gate else "up_proj"


def expert_modules(model: nn.Module) -> list[ExpertModule]:
    """In the order of their layers. Raises UnsupportedModel if there are none, or none that can be remote."""
    found = [
        ExpertModule(name, _layer(name), module)
        for name, module in model.named_modules()
        if hasattr(module, _MARK)
    ]
    if not found:
        raise UnsupportedModel(f"{type(model).__name__} has no experts that transformers' interface replaces")
    if len({each.layer for each in found}) < len(found):
        raise UnsupportedModel(f"{type(model).__name__} has several groups of experts in a layer")
    if found[0].module.has_post_expert_norm:
        raise UnsupportedModel(f"{type(model).__name__} has a norm after each expert")
    return sorted(found, key=lambda each: each.layer)


def activation_of(module: Any) -> tuple[Activation, bool]:
    """What the experts of a module compute between their products, and whether gates and ups alternate in
    the rows of its first matrix.

    Raises UnsupportedModel if no kernel computes it.
    """
    x = 4 * torch.randn(_ROWS, _COLUMNS, generator=torch.Generator().manual_seed(0))
    wanted = module._apply_gate(x) if module.has_gate else module.act_fn(x)
    for activation in _candidates(module):
        for alternate in (False, True) if activation.gated else (False,):
            gate, up = (x[:, ::2], x[:, 1::2]) if alternate else x.chunk(2, dim=-1)
            if computes(activation, gate, up if activation.gated else x, wanted):
                return activation, alternate
    raise UnsupportedModel(f"no kernel computes the activation of {type(module).__name__}")


def computes(activation: Activation, gate: torch.Tensor, up: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether the activation of gates and ups [T, I] is what is wanted [T, I]. Gates may not count."""
    found = activation(gate.numpy() if activation.gated else None, up.numpy())
    return np.allclose(found, wanted.numpy(), atol=TOLERANCE, rtol=TOLERANCE)


def _candidates(module: Any) -> Iterator[Activation]:
    """Limits and factors are the module's own numbers, whatever it calls them."""
    yield from (Activation(function, gated=bool(module.has_gate)) for function in FUNCTIONS)
    if not module.has_gate:
        return
    numbers = {name: float(value) for name, value in vars(module).items() if type(value) in (int, float)}
    limits = [value for name, value in numbers.items() if "limit" in name and value > 0]
    alphas = [1.0, *(value for name, value in numbers.items() if "alpha" in name and value > 0)]
    for limit, function, offset in product((*limits, None), FUNCTIONS, (0.0, 1.0)):
        for alpha in alphas if function == "silu" else (1.0,):
            yield Activation(function, True, limit, alpha, offset)


def _layer(name: str) -> int:
    """The number in a module's name, which is its layer's."""
    numbers = re.findall(r"(?:^|\.)(\d+)(?=\.|$)", name)
    if len(numbers) != 1:
        raise UnsupportedModel(f"the experts {name} are in no numbered layer")
    return int(numbers[0])
