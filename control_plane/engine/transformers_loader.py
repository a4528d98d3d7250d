"""Loads the dense part of a model into transformers' modules."""

from pathlib import Path

from control_plane.engine.kernels import DenseKernel
from control_plane.engine.model.transformers_model.experts import INTERFACE, experts_modules
from control_plane.engine.model.transformers_model.lockstep.model import LockstepModel
from control_plane.engine.model.transformers_model.ragged import attention
from control_plane.engine.model.transformers_model.ragged.model import RaggedModel
from control_plane.engine.model.transformers_model.weights import load_config, load_module
from control_plane.errors import PartitionError
from control_plane.partition.checkpoint.untrusted import loading
from control_plane.partition.manifest import Manifest


def load_transformers(
    partition: Path, manifest: Manifest, threads: int, kernel: DenseKernel
) -> RaggedModel | LockstepModel:
    """The model in a partition, whose dense file has the names of the model's own `state_dict`.

    Raises `PartitionError`.
    """
    config = load_config(partition)
    dense, experts = (
        partition / manifest.dense.file,
        dict(zip(manifest.experts, manifest.moe_layers, strict=True)),
    )
    is_ragged = manifest.way != "lockstep"
    if is_ragged:
        attention.register()
    model = load_module(partition, dense, config, manifest.dtype, INTERFACE if is_ragged else None)
    if found := set(experts_modules(model)) ^ experts.keys():
        raise PartitionError(f"{partition}: the model and the manifest differ in experts: {sorted(found)[0]}")
    with loading(f"the model in {partition}"):
        if is_ragged:
            return RaggedModel(model, experts, manifest.dtype, threads, kernel)
        return LockstepModel(model, experts, manifest.dtype, threads)
