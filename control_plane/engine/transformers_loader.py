"""Loads the dense part of a model into transformers' modules, and chooses the way that they are computed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from control_plane.engine.kernels import DenseKernel
from control_plane.engine.model.transformers_model.experts import INTERFACE, experts_modules
from control_plane.engine.model.transformers_model.lockstep.model import LockstepModel
from control_plane.engine.model.transformers_model.ragged import attention
from control_plane.engine.model.transformers_model.ragged.model import RaggedModel
from control_plane.engine.model.transformers_model.weights import load_config, load_module, model_class
from control_plane.errors import UnsupportedModel
from control_plane.partition.checkpoint.untrusted import loading

_STATES = frozenset({"linear_attention", "mamba", "conv", "hybrid", "hybrid_sliding", "indexed_attention"})
"""Types of layers that keep other things of a sequence than keys and values."""


def load_transformers(
    partition: Path,
    dense: Path,
    dtype: str,
    moe_layers: Sequence[int],
    threads: int,
    kernel: DenseKernel,
    way: str | None = None,
) -> RaggedModel | LockstepModel:
    """The model in a partition, whose `dense` file has the names of the model's own `state_dict`.

    `dtype` is that of the activations, `way` "ragged" or "lockstep"; without it, `way_of` chooses. Raises
    `PartitionError`, `UnsupportedModel` for a family that cannot be computed in either way.
    """
    config = load_config(partition)
    is_ragged = (way or way_of(config)) == "ragged"
    if is_ragged:
        attention.register()
    model = load_module(partition, dense, config, dtype, INTERFACE if is_ragged else None)
    names = list(experts_modules(model))
    if len(names) != len(moe_layers):
        raise UnsupportedModel(
            f"{config.model_type} has {len(names)} modules of transformers' experts interface, and "
            f"{len(moe_layers)} layers with experts"
        )
    experts = dict(zip(names, moe_layers, strict=True))
    with loading(f"the model in {partition}"):
        if is_ragged:
            return RaggedModel(model, experts, dtype, threads, kernel)
        return LockstepModel(model, experts, dtype, threads)


def way_of(config: PretrainedConfig) -> str:
    """ "lockstep" for a family that keeps other things of a sequence than keys and values, else "ragged"."""
    own: Any = model_class(config)
    layer_types = getattr(config, "layer_types", None) or ()
    return "lockstep" if own._is_stateful or _STATES & {*layer_types} else "ragged"
