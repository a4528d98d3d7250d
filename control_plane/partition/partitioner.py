"""Splits a checkpoint into its dense part and blocks of experts, with one expert in memory at a time."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from control_plane.errors import PartitionError
from control_plane.files import partial_folder
from control_plane.partition.checkpoint.reader import Checkpoint
from control_plane.partition.companions import copy_companions
from control_plane.partition.dense import dense_metadata
from control_plane.partition.granularity import Granularity
from control_plane.partition.manifest import Manifest
from control_plane.partition.model.architecture import ActivationEntry, Architecture
from control_plane.partition.model.expert_tensors import ExpertKey
from control_plane.partition.model.inspection import inspect
from control_plane.partition.partition_files import Block, PartitionFile
from control_plane.partition.plan import BlockPlan, Plan
from control_plane.partition.profile import Profile
from control_plane.partition.quantisation.importance import expert_importance
from control_plane.partition.quantisation.scale_search import load_scale_search
from control_plane.partition.tensor_writer import TensorEntry, TensorWriter
from functions.contract.manifest import ExpertChecksum
from functions.kernels.packed_expert import pack_expert
from functions.kernels.packed_tiles import Quantised

DENSE_FILE = "dense.safetensors"
BLOCKS_FOLDER = "blocks"
LAYOUT_VERSION = 3
"""The version of the byte layout of packed experts (`functions.kernels.packed_expert`)."""

Progress = Callable[[int, int], None]
"""Receives the number of weight bytes written so far, and the total."""

_SPARE_NBYTES = 64 << 20
"""Disk space for headers, config and tokenizer files, and the file system itself."""


def partition(
    model: Path | Checkpoint,
    out_dir: Path,
    *,
    granularity: Granularity | None = None,
    dtype: str = "auto",
    dense_dtype: str = "auto",
    name: str | None = None,
    profile: Profile | None = None,
    progress: Progress = lambda done, total: None,
    architecture: Architecture | None = None,
) -> Manifest:
    """Write the partition of a checkpoint, or of the checkpoint in a folder, to the new folder `out_dir`.

    Args:
        granularity: by default as `default_granularity` chooses.
        dtype: "auto" keeps the dtype of the checkpoint's experts, for the dense part as well (float16 becomes
            f32, because bf16 would lose three of its bits and no kernel reads float16), and the types of a
            quantised checkpoint (see `recipes`). "f32" and "bf16"
            convert all weights. "int8" and "int4" quantise the experts, and treat the dense part like "auto".
        dense_dtype: "int8" and "int4" quantise the matrices of the dense part that every token reads in full;
            "auto" keeps their types. `recipes` has the types that these names stand for.
        name: the start of the functions' names; by default the name of the checkpoint's folder or file.
        profile: groups the experts of a layer by use (see `packing`), and says which errors count most when
            weights are quantised (see `importance`); without it, functions get consecutive experts, and all
            errors count alike.

    `out_dir` is complete or absent, however the call ends. Raises ConfigError for a wrong argument,
    PartitionError for a checkpoint that cannot be split or a disk without room.
    """
    checkpoint = Checkpoint.open(model.absolute()) if isinstance(model, Path) else model
    architecture = architecture or inspect(checkpoint)
    plan = Plan.make(
        checkpoint, architecture, granularity, dtype, dense_dtype, name or checkpoint.name, profile
    )
    return write_partition(plan, checkpoint.folder, out_dir, progress)


def write_partition(
    plan: Plan, source: Path, out_dir: Path, progress: Progress = lambda done, total: None
) -> Manifest:
    """Write what was planned, with the small files of the folder `source`, to the new folder `out_dir`.

    `out_dir` is complete or absent, however the call ends. Raises PartitionError for a checkpoint that cannot
    be split or a disk without room.
    """
    with partial_folder(out_dir.absolute()) as folder:
        _check_space(folder, plan.nbytes)
        files = copy_companions(source, folder)
        writer = _WeightsWriter(plan, folder, progress)
        manifest = _manifest(plan, writer.write_dense(), writer.write_blocks(), files)
        manifest.save(folder)
    return manifest


class _WeightsWriter:
    """Writes a plan's weights to a folder, and reports progress."""

    def __init__(self, plan: Plan, folder: Path, progress: Progress) -> None:
        self._plan = plan
        self._folder = folder
        self._progress = progress
        self._search = load_scale_search()
        self._done = 0

    def write_dense(self) -> PartitionFile:
        tensors = self._plan.dense
        entries = [tensor.entry for tensor in tensors]
        with TensorWriter(self._folder / DENSE_FILE, entries, dense_metadata(tensors)) as file:
            for tensor in tensors:
                for values in tensor.chunks(self._search.quantise):
                    self._write(file, values)
        return PartitionFile(DENSE_FILE, file.nbytes, file.sha256)

    def write_blocks(self) -> tuple[Block, ...]:
        (self._folder / BLOCKS_FOLDER).mkdir()
        return tuple(self._write_block(block) for block in self._plan.blocks())

    def _write_block(self, block: BlockPlan) -> Block:
        name = f"{BLOCKS_FOLDER}/{block.function}.safetensors"
        entries = [
            TensorEntry(f"layers.{layer}.experts.{expert}", "U8", (self._plan.expert_nbytes,))
            for layer, expert in block.expert_keys()
        ]
        with TensorWriter(self._folder / name, entries, self._block_metadata()) as file:
            checksums = {
                layer: tuple(self._write_expert(file, (layer, expert)) for expert in experts)
                for layer, experts in block.experts.items()
            }
        experts = {layer: tuple(experts) for layer, experts in block.experts.items()}
        return Block(name, file.nbytes, file.sha256, block.function, file.data_offset, experts, checksums)

    def _write_expert(self, file: TensorWriter, key: ExpertKey) -> str:
        """Append an expert; returns its checksum."""
        packed = self._packed(key)
        self._write(file, packed)
        return ExpertChecksum(packed.data).hexdigest()

    def _block_metadata(self) -> dict[str, str]:
        shape = self._plan.shape
        return {
            "format": "faasmoe",
            "layout": str(LAYOUT_VERSION),
            "gate_up_dtype": shape.gate_up_dtype,
            "down_dtype": shape.down_dtype,
            "hidden_size": str(shape.hidden_size),
            "intermediate_size": str(shape.intermediate_size),
            "activation": json.dumps(vars(shape.activation)),
            "has_bias": json.dumps(shape.has_bias),
        }

    def _packed(self, key: ExpertKey) -> NDArray[np.uint8]:
        """The packed bytes of an expert, filled up with zeros to whole pages, [expert_nbytes]."""
        expert, shape = self._plan.experts[key], self._plan.shape
        gate = None if expert.gate is None else expert.gate.packable(shape.gate_up_dtype)
        up, down = expert.up.packable(shape.gate_up_dtype), expert.down.packable(shape.down_dtype)
        biases = expert.read_biases()
        squares, importance = self._plan.input_squares.get(key[0]), None
        keeps_codes = all(isinstance(matrix, Quantised) for matrix in (gate, up, down) if matrix is not None)
        if squares is not None and shape.is_quantised and not keeps_codes:
            plain = None if expert.gate is None else expert.gate.read()
            importance = expert_importance(squares, plain, expert.up.read(), shape.activation, biases)
        try:
            packed = pack_expert(shape, gate, up, down, importance, self._search.quantise, biases=biases)
        except ValueError as error:
            layer, index = key
            raise PartitionError(
                f"{expert.up.tensor.path}: expert {index} of layer {layer}: {error}"
            ) from error
        # In place: a copy may need hundreds of megabytes, and there is no other reference to the bytes.
        packed.resize(self._plan.expert_nbytes, refcheck=False)
        return packed

    def _write(self, file: TensorWriter, values: NDArray[Any]) -> None:
        file.write(values)
        self._done += values.nbytes
        self._progress(self._done, self._plan.nbytes)


def _check_space(folder: Path, nbytes: int) -> None:
    needed, free = nbytes + _SPARE_NBYTES, shutil.disk_usage(folder).free
    if free < needed:
        raise PartitionError(
            f"the partition needs {needed / 1e9:.1f} GB, {folder.parent} has {free / 1e9:.1f} GB free"
        )


def _manifest(plan: Plan, dense: PartitionFile, blocks: tuple[Block, ...], files: dict[str, str]) -> Manifest:
    architecture, granularity = plan.architecture, plan.granularity
    return Manifest(
        name=plan.name,
        model_type=architecture.model_type,
        dtype=plan.types.dtype,
        dense_dtypes=plan.types.dense,
        gate_up_dtype=plan.types.experts.gate_up,
        down_dtype=plan.types.experts.down,
        hidden_size=architecture.hidden_size,
        intermediate_size=architecture.intermediate_size,
        activation=ActivationEntry.of(plan.shape.activation),
        has_bias=plan.shape.has_bias,
        num_experts=architecture.num_experts,
        num_experts_per_tok=architecture.num_experts_per_tok,
        experts_per_function=granularity.experts_per_function,
        layers_per_function=granularity.layers_per_function,
        moe_layers=plan.moe_layers,
        experts=tuple(layer.module for layer in architecture.layers),
        way=architecture.way,
        chunks_prompts=architecture.chunks_prompts,
        program=architecture.program,
        expert_nbytes=plan.expert_nbytes,
        dense=dense,
        files=files,
        blocks=blocks,
    )
