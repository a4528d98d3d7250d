"""A partition's dense part in transformers' modules."""

from pathlib import Path

from transformers import PreTrainedModel

from control_plane.engine.kernels import load_dense_kernel
from control_plane.engine.model.transformers_model.lockstep.model import LockstepModel
from control_plane.engine.model.transformers_model.ragged.model import RaggedModel
from control_plane.engine.transformers_loader import load_transformers
from control_plane.partition.manifest import Manifest


def in_modules(partition: Path, manifest: Manifest) -> RaggedModel | LockstepModel:
    """The model, computed by transformers' modules though it has programs."""
    dense = partition / manifest.dense.file
    return load_transformers(
        partition, dense, manifest.dtype, manifest.moe_layers, 1, load_dense_kernel(), "ragged"
    )


def modules_of(partition: Path, manifest: Manifest) -> PreTrainedModel:
    """transformers' modules without a dispatcher."""
    return in_modules(partition, manifest).model
