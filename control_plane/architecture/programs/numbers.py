"""Reads the numbers of a model's config and modules, and refuses those that no layer program knows."""

from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from control_plane.errors import UnsupportedModel

ROUTER_SCALES = ("routed_scaling_factor", "router_scaling_factor", "route_scale")
_EPSILONS = ("variance_epsilon", "eps")
_KNOWN = frozenset(
    {
        *ROUTER_SCALES,
        *_EPSILONS,
        "scaling",
        "residual_multiplier",
        "embedding_multiplier",
        "logits_scaling",
        "norm_min",
        # They count in training alone.
        "attention_dropout",
        "jitter_noise",
        "router_aux_loss_coef",
    }
)
"""Those that programs know, or that do not matter."""


def check_numbers(model: nn.Module, experts: Iterable[str]) -> None:
    """Raise UnsupportedModel for a number that a module of the dense part has and programs do not know.

    A trial may not notice it: what a limit of large values does, is nothing in a small model.
    """
    skipped = tuple(experts)
    for name, module in model.named_modules():
        if name.startswith(skipped) or type(module).__module__.startswith("torch."):
            continue
        for key, value in vars(module).items():
            is_factor = type(value) is float or (type(value) is int and "cap" in key)
            if is_factor and value and key not in _KNOWN and not key.endswith("attention_scaling"):
                raise UnsupportedModel(f"a layer program has no {key}, as {name or 'the model'} has")


def is_norm(module: nn.Module) -> bool:
    """Whether a module has nothing but a weight [H]. What it computes, a trial finds out."""
    parameters = dict(module.named_parameters())
    return parameters.keys() == {"weight"} and parameters["weight"].ndim == 1


def epsilon(model: nn.Module) -> Any:
    """That of all norms. Raises UnsupportedModel if they differ."""
    return same(number([module], _EPSILONS, None) for module in model.modules() if is_norm(module))


def same(values: Iterable[Any]) -> Any:
    """The value that all of them are. Raises UnsupportedModel if they differ."""
    found = set(values)
    if len(found) != 1:
        raise UnsupportedModel(f"a layer program has one number for all layers, not {len(found)}")
    return found.pop()


def known(config: PretrainedConfig, name: str) -> Any:
    """A value of a config; None if the family's config does not know it, whatever config.json says."""
    return getattr(config, name) if hasattr(type(config), name) else None


def number(modules: Iterable[nn.Module], names: Iterable[str], default: Any) -> Any:
    """The first attribute of the modules that has one of these names."""
    keys = tuple(names)
    values = (getattr(module, name, None) for module in modules for name in keys)
    return next((value for value in values if value is not None), default)
