"""Loads the dense part of a model, which every token needs."""

from pathlib import Path

from control_plane.engine.kernels import DenseKernel, load_dense_kernel
from control_plane.engine.model.dense_model import DenseModel
from control_plane.engine.model.program_layers import has_programs
from control_plane.engine.model.program_model import ProgramModel
from control_plane.partition.checkpoint.untrusted import loading
from control_plane.partition.manifest import Manifest


def load_model(
    partition: Path, manifest: Manifest, threads: int, kernel: DenseKernel | None = None
) -> DenseModel:
    """The dense part, computed on up to so many threads, by the fastest kernel if none is given.

    The weights are mapped from the file: they are read when they are used, and shared between processes.
    Without the C extension, transformers' modules compute what has layer programs. Raises `PartitionError`.
    """
    kernel = kernel or load_dense_kernel()
    manifest.verify_dense(partition)
    program = manifest.program if manifest.way == "program" else None
    if program is None or not has_programs(kernel):
        # They bring torch and transformers: two seconds, and 250 MB.
        from control_plane.engine.transformers_loader import load_transformers

        dense, layers = partition / manifest.dense.file, manifest.moe_layers
        return load_transformers(
            partition, dense, manifest.dtype, layers, threads, kernel, manifest.way, manifest.chunks_prompts
        )
    with loading(f"the model in {partition}"):
        return ProgramModel(partition, manifest, program, kernel, threads)
