"""Loads the dense part of a model, which every token needs."""

from pathlib import Path

from control_plane.engine.kernels import DenseKernel, load_dense_kernel
from control_plane.engine.model.dense_model import DenseModel
from control_plane.engine.model.program_layers import has_program
from control_plane.engine.model.program_model import ProgramModel
from control_plane.partition.checkpoint.dense_config import DenseConfig
from control_plane.partition.checkpoint.untrusted import loading
from control_plane.partition.manifest import Manifest


def load_model(
    partition: Path, manifest: Manifest, threads: int, kernel: DenseKernel | None = None
) -> DenseModel:
    """The dense part, computed on up to so many threads, by the fastest kernel if none is given.

    The weights are mapped from the file: they are read when they are used, and shared between processes.
    A family without layer programs is computed by transformers' modules. Raises `PartitionError`.
    """
    kernel = kernel or load_dense_kernel()
    manifest.verify_dense(partition)
    if not has_program(manifest.model_type, kernel):
        # They bring torch and transformers: two seconds, and 250 MB.
        from control_plane.engine.transformers_loader import load_transformers

        dense = partition / manifest.dense.file
        return load_transformers(partition, dense, manifest.dtype, manifest.moe_layers, threads, kernel)
    with loading(f"the model in {partition}"):
        return ProgramModel(partition, manifest, DenseConfig.load(partition), kernel, threads)
