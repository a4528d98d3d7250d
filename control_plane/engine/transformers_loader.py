"""Loads the dense part of a model into transformers' modules."""

from collections.abc import Sequence
from pathlib import Path

from control_plane.engine.kernels import DenseKernel
from control_plane.engine.model.transformers_model.experts import INTERFACE, experts_modules
from control_plane.engine.model.transformers_model.lockstep.model import LockstepModel
from control_plane.engine.model.transformers_model.ragged import attention
from control_plane.engine.model.transformers_model.ragged.model import RaggedModel
from control_plane.engine.model.transformers_model.weights import load_config, load_module
from control_plane.errors import UnsupportedModel
from control_plane.partition.checkpoint.untrusted import loading
from control_plane.partition.model.architecture import Way


def load_transformers(
    partition: Path,
    dense: Path,
    dtype: str,
    moe_layers: Sequence[int],
    threads: int,
    kernel: DenseKernel,
    way: Way,
    chunks_prompts: bool = True,
) -> RaggedModel | LockstepModel:
    """The model in a partition, whose `dense` file has the names of the model's own `state_dict`.

    `dtype` is that of the activations; `chunks_prompts` counts for "lockstep". Layers that could be programs
    are computed like those of a ragged model. Raises `PartitionError`, `UnsupportedModel` for a family that
    cannot be computed in this way.
    """
    config = load_config(partition)
    is_ragged = way != "lockstep"
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
        return LockstepModel(model, experts, dtype, threads, chunks_prompts)
