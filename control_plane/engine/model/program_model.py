"""The dense part of a model as layer programs, each of which is one call of the C extension."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from control_plane.engine.experts.dispatcher import Dispatcher
from control_plane.engine.experts.predictor import RouterWeights
from control_plane.engine.kernels import DenseKernel
from control_plane.engine.kernels.layer_program import BatchRows
from control_plane.engine.model.dense_file import DenseFile
from control_plane.engine.model.dense_model import ACTIVATIONS, MemorySize, ModelSizes
from control_plane.engine.model.program_layers import ffn_width, layer_program, linear, vector
from control_plane.engine.model.ragged_batch import cache_rows, spans_of, token_ids
from control_plane.engine.model.rotation import Rotation
from control_plane.engine.model.stored_embedding import StoredEmbedding
from control_plane.engine.scheduling.chunk import Chunk
from control_plane.engine.state.kv_cache import KVCache
from control_plane.engine.state.kv_cache_shape import KVCacheShape
from control_plane.errors import PartitionError
from control_plane.partition.dense import HEAD
from control_plane.partition.manifest import Manifest
from control_plane.partition.model.program import Program
from functions.kernels.bfloat16 import as_f32, f32_to_bf16


class ProgramModel:
    """Layer programs, the embedding before them, and the norm and the head behind."""

    def __init__(
        self, partition: Path, manifest: Manifest, program: Program, kernel: DenseKernel, threads: int
    ) -> None:
        """Raises `PartitionError` or ValueError for a dense file that does not fit to the program."""
        file = self._file = DenseFile(partition / manifest.dense.file, manifest.dtype)
        self._program = program
        self._shape = KVCacheShape.uniform(
            len(program.layers), program.kv_heads, program.head_dim, ACTIVATIONS[manifest.dtype]
        )
        self.embedding = StoredEmbedding(file)
        self._kernel = kernel
        self._path = partition
        self._threads = threads
        self._layers = [
            layer_program(kernel.name, file, manifest, program, layer) for layer in range(len(program.layers))
        ]
        self._norm = vector(file, program.norm)
        self._head = linear(file, program, HEAD)
        self._rotations: dict[int | None, Rotation] = {
            None: Rotation.none(manifest.dtype),
            **{number: Rotation.of(entry, manifest.dtype) for number, entry in enumerate(program.rotations)},
        }
        self._check_sizes(manifest)
        # What was read to be packed is not read again.
        file.release()

    @property
    def sizes(self) -> ModelSizes:
        vocabulary, hidden_size = self.embedding.shape
        width = max(hidden_size, *(ffn_width(self._file, layer) for layer in self._program.layers))
        return ModelSizes(vocabulary, self._program.context_length, width)

    @property
    def stored_embedding_bytes(self) -> int:
        return self.embedding.nbytes

    @property
    def has_masks(self) -> bool:
        return False

    @property
    def chunks_prompts(self) -> bool:
        return True

    @property
    def page_nbytes(self) -> int:
        return self._shape.page_nbytes

    def new_memory(self, size: MemorySize) -> KVCache:
        return KVCache(self._shape, *size[:3], self._kernel, size.threads)

    def attach(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    def router(self, layer: int) -> RouterWeights | None:
        entry = self._program.layers[layer]
        if entry.router is None or entry.ffn_norm is None:
            return None
        return RouterWeights(
            self._file.array(f"{entry.router.module}.weight"), self._file.array(entry.ffn_norm)
        )

    def hidden_states(self, batch: list[Chunk], memory: KVCache) -> NDArray[Any]:
        cached = cache_rows(spans_of(batch, memory.pages))
        rotated = {
            number: BatchRows(cached.lanes, cached.positions, *rotation.at(cached.positions))
            for number, rotation in self._rotations.items()
        }
        hidden = _scaled(self.embedding.rows(token_ids(batch)), self._program.embedding_scale)
        for number, entry in enumerate(self._program.layers):
            self._compute(number, hidden, rotated[entry.rotation], memory)
        return self._kernel.rms_norm(hidden, self._norm, self._program.epsilon)

    def logits(self, hidden_states: NDArray[Any]) -> NDArray[Any]:
        (logits,) = self._kernel.linear([self._head], hidden_states, threads=self._threads)
        return _scaled(logits, self._program.logits_scale)

    def _check_sizes(self, manifest: Manifest) -> None:
        """Raise `PartitionError` unless all parts have the sizes of the manifest. Layers check their own."""
        hidden, vocabulary = manifest.hidden_size, self.embedding.shape[0]
        head = self._head.shape
        sizes: list[tuple[str, object, object]] = [
            ("the embeddings", self.embedding.shape, (vocabulary, hidden)),
            ("the last norm", self._norm.shape, (hidden,)),
            ("the head", (head.outputs, head.inputs), (vocabulary, hidden)),
            *(
                (
                    f"the router of layer {layer}",
                    self._file.array(f"{entry.router.module}.weight").shape,
                    (manifest.num_experts, hidden),
                )
                for layer, entry in enumerate(self._program.layers)
                if entry.router is not None
            ),
        ]
        for name, found, wanted in sizes:
            if found != wanted:
                raise PartitionError(
                    f"cannot load the model in {self._path}: {name} is {found}, not {wanted}"
                )

    def _compute(self, number: int, hidden: NDArray[Any], rows: BatchRows, memory: KVCache) -> None:
        """One layer, which changes the rows `hidden` [T, H]."""
        program = self._layers[number]
        routed = program.begin(*memory.kernel_layer(number), hidden, rows, self._threads)
        if self._program.layers[number].router is None:
            program.end(hidden, None, program.shared(routed.hidden_states, self._threads))
            return
        pending = self._dispatcher.begin(number, routed.hidden_states, routed.index, routed.weights)
        shared = program.shared(routed.hidden_states, self._threads)
        program.end(hidden, pending.wait(), shared)


def _scaled(rows: NDArray[Any], factor: float) -> NDArray[Any]:
    """Rows times a factor, in their own dtype."""
    if factor == 1:
        return rows
    values = as_f32(rows) * np.float32(factor)
    return f32_to_bf16(values) if rows.dtype == np.uint16 else values
