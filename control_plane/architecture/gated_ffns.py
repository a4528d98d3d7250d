"""Finds the gated FFNs of a model's dense part, which the experts' kernel can compute."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from control_plane.architecture.experts import TOLERANCE
from control_plane.partition.model.architecture import DenseEntry
from functions.kernels.activation import SWIGLU

_PARTS = ("gate_proj", "up_proj", "down_proj")
_ROWS = 4


def gated_ffns(model: nn.Module, entries: Mapping[str, DenseEntry]) -> Iterator[str]:
    """Modules that are down(silu(gate(x)) * up(x)) without biases. Each class is tried once."""
    tried: dict[tuple[type, type], bool] = {}
    for name, module in model.named_modules():
        if not _has_parts(module) or any(entries[f"{name}.{part}.weight"].keeps_f32 for part in _PARTS):
            continue
        kind = type(module), type(getattr(module, "act_fn", None))
        if kind not in tried:
            tried[kind] = _is_swiglu(module)
        if tried[kind]:
            yield name


def _has_parts(module: nn.Module) -> bool:
    parts = [getattr(module, part, None) for part in _PARTS]
    return all(type(part) is nn.Linear and part.bias is None for part in parts)


def _is_swiglu(module: Any) -> bool:
    """Tries a module on the meta device, whose matrices are replaced by small random ones meanwhile."""
    random = torch.Generator().manual_seed(0)
    own = {part: getattr(module, part) for part in _PARTS}
    hidden, width = 6, 4
    sizes = {"gate_proj": (width, hidden), "up_proj": (width, hidden), "down_proj": (hidden, width)}
    weights = {part: torch.randn(size, generator=random) for part, size in sizes.items()}
    x = torch.randn(_ROWS, hidden, generator=random)
    try:
        for part, weight in weights.items():
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            linear.weight = nn.Parameter(weight)
            setattr(module, part, linear)
        with torch.no_grad():
            wanted = module(x)
    except Exception:  # A forward of another signature, or other parameters: it is no plain gated FFN.
        return False
    finally:
        for part, linear in own.items():
            setattr(module, part, linear)
    gate, up = x @ weights["gate_proj"].T, x @ weights["up_proj"].T
    found = torch.from_numpy(SWIGLU(gate.numpy(), up.numpy())) @ weights["down_proj"].T
    return wanted.shape == found.shape and torch.allclose(found, wanted, atol=TOLERANCE, rtol=TOLERANCE)
