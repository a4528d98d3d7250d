"""Finds a model's experts by the mark of transformers' experts interface, and what they compute by trying."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from control_plane.errors import UnsupportedModel
from control_plane.partition.model.architecture import ActivationEntry

_MARK = "_is_expert_parallel"
"""An attribute that only modules of the interface have."""
_ROWS, _COLUMNS = 64, 32
_TOLERANCE = 1e-5
_FUNCTIONS = {
    "silu": F.silu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": F.gelu,
    "relu2": lambda x: F.relu(x).square(),
    "relu": F.relu,
}


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


def activation_of(module: Any) -> tuple[ActivationEntry, bool]:
    """What the experts of a module compute between their products, and whether gates and ups alternate in
    the rows of its first matrix.

    Raises UnsupportedModel if no kernel computes it.
    """
    x = 4 * torch.randn(_ROWS, _COLUMNS, generator=torch.Generator().manual_seed(0))
    wanted = module._apply_gate(x) if module.has_gate else module.act_fn(x)
    for activation in _candidates(module):
        for alternate in (False, True) if activation.gated else (False,):
            gate, up = (x[:, ::2], x[:, 1::2]) if alternate else x.chunk(2, dim=-1)
            found = computed(activation, gate, up) if activation.gated else computed(activation, x, x)
            if torch.allclose(found, wanted, atol=_TOLERANCE, rtol=_TOLERANCE):
                return activation, alternate
    raise UnsupportedModel(f"no kernel computes the activation of {type(module).__name__}")


def computed(activation: ActivationEntry, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """The activation of gates and ups [T, I]; `gate` does not count for one without a gate."""
    limit = activation.limit
    argument = gate if activation.gated else up
    if limit is not None:
        argument = argument.clamp(max=limit)
        up = up.clamp(-limit, limit)
    scaled = activation.function == "silu"
    function = _FUNCTIONS[activation.function]
    value = function(activation.alpha * argument) / activation.alpha if scaled else function(argument)
    return value * (up + activation.up_offset) if activation.gated else value


def _candidates(module: Any) -> Iterator[ActivationEntry]:
    """Limits and factors are the module's own numbers, whatever it calls them."""
    if not module.has_gate:
        yield from (ActivationEntry(function, gated=False) for function in _FUNCTIONS)
        return
    yield from (ActivationEntry(function) for function in _FUNCTIONS)
    numbers = {name: value for name, value in vars(module).items() if type(value) in (int, float)}
    limits = [float(value) for name, value in numbers.items() if "limit" in name and value > 0]
    alphas = [1.0, *(float(value) for name, value in numbers.items() if "alpha" in name and value > 0)]
    for limit in (*limits, None):
        for function in _FUNCTIONS:
            for offset in (0.0, 1.0):
                for alpha in alphas if function == "silu" else (1.0,):
                    yield ActivationEntry(function, True, limit, alpha, offset)


def _layer(name: str) -> int:
    """The number in a module's name, which is its layer's."""
    numbers = re.findall(r"(?:^|\.)(\d+)(?=\.|$)", name)
    if len(numbers) != 1:
        raise UnsupportedModel(f"the experts {name} are in no numbered layer")
    return int(numbers[0])
