"""The dense part of a model as layer programs, each of which is one call of the C extension."""

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from control_plane.engine.experts.dispatcher import Dispatcher
from control_plane.engine.experts.predictor import RouterWeights
from control_plane.engine.kernels import DenseKernel
from control_plane.engine.kernels.layer_program import BatchRows, LayerProgram
from control_plane.engine.model.dense_file import DenseFile
from control_plane.engine.model.dense_model import ACTIVATIONS, MemorySize, ModelSizes
from control_plane.engine.model.program_layers import layer_program, linear, router_module, vector
from control_plane.engine.model.ragged_batch import cache_rows, spans_of, token_ids
from control_plane.engine.model.rotation import Rotation
from control_plane.engine.model.stored_embedding import StoredEmbedding
from control_plane.engine.scheduling.chunk import Chunk
from control_plane.engine.state.kv_cache import KVCache
from control_plane.engine.state.kv_cache_shape import KVCacheShape
from control_plane.errors import PartitionError
from control_plane.partition.checkpoint.rope import context_length
from control_plane.partition.dense import HEAD
from control_plane.partition.manifest import Manifest
from control_plane.partition.model.dense_config import DenseConfig


class ProgramModel:
    """Layer programs, the embedding before them, and the norm and the head behind."""

    def __init__(
        self, partition: Path, manifest: Manifest, config: DenseConfig, kernel: DenseKernel, threads: int
    ) -> None:
        """Raises `PartitionError` or ValueError for a dense file that does not fit to the config."""
        file = self._file = DenseFile(partition / manifest.dense.file, manifest.dtype)
        self.config = config
        self._shape = KVCacheShape.uniform(
            config.num_hidden_layers,
            config.num_key_value_heads,
            config.head_dim,
            ACTIVATIONS[manifest.dtype],
        )
        self.embedding = StoredEmbedding(file)
        self._kernel = kernel
        self._path = partition
        self._threads = threads
        self._moe_layers = frozenset(manifest.moe_layers)
        self._layers = [
            layer_program(kernel.name, file, config, layer, layer in self._moe_layers)
            for layer in range(config.num_hidden_layers)
        ]
        self._norm = vector(file, "model.norm.weight")
        self._head = linear(file, HEAD)
        self._rotation = Rotation.of(config, manifest.dtype)
        self._check_sizes(manifest)
        # What was read to be packed is not read again.
        file.release()

    @property
    def sizes(self) -> ModelSizes:
        config = self.config
        context = context_length(config.max_position_embeddings, config.rope_parameters)
        return ModelSizes(config.vocab_size, context, config.dense_width)

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

    def router(self, layer: int) -> RouterWeights:
        return RouterWeights(
            self._file.array(f"{router_module(layer)}.weight"),
            self._file.array(f"model.layers.{layer}.post_attention_layernorm.weight"),
        )

    def hidden_states(self, batch: list[Chunk], memory: KVCache) -> NDArray[Any]:
        cached = cache_rows(spans_of(batch, memory.pages))
        rows = BatchRows(cached.lanes, cached.positions, *self._rotation.at(cached.positions))
        hidden = self.embedding.rows(token_ids(batch))
        for number, program in enumerate(self._layers):
            self._compute(number, program, hidden, rows, memory)
        return self._kernel.rms_norm(hidden, self._norm, self.config.rms_norm_eps)

    def logits(self, hidden_states: NDArray[Any]) -> NDArray[Any]:
        (logits,) = self._kernel.linear([self._head], hidden_states, threads=self._threads)
        return logits

    def _check_sizes(self, manifest: Manifest) -> None:
        """Raise `PartitionError` unless all parts have the sizes of the manifest. Layers check their own."""
        hidden, vocabulary = manifest.hidden_size, self.config.vocab_size
        head = self._head.shape
        sizes: list[tuple[str, object, object]] = [
            (
                "the number of experts per token",
                self.config.num_experts_per_tok,
                manifest.num_experts_per_tok,
            ),
            ("the embeddings", self.embedding.shape, (vocabulary, hidden)),
            ("the last norm", self._norm.shape, (hidden,)),
            ("the head", (head.outputs, head.inputs), (vocabulary, hidden)),
            *(
                (
                    f"the router of layer {layer}",
                    self.router(layer).weight.shape,
                    (manifest.num_experts, hidden),
                )
                for layer in manifest.moe_layers
            ),
        ]
        for name, found, wanted in sizes:
            if found != wanted:
                raise PartitionError(
                    f"cannot load the model in {self._path}: {name} is {found}, not {wanted}"
                )

    def _compute(
        self, number: int, program: LayerProgram, hidden: NDArray[Any], rows: BatchRows, memory: KVCache
    ) -> None:
        """One layer, which changes the rows `hidden` [T, H]."""
        routed = program.begin(*memory.kernel_layer(number), hidden, rows, self._threads)
        if number not in self._moe_layers:
            program.end(hidden, None, program.shared(routed.hidden_states, self._threads))
            return
        pending = self._dispatcher.begin(number, routed.hidden_states, routed.index, routed.weights)
        shared = program.shared(routed.hidden_states, self._threads)
        program.end(hidden, pending.wait(), shared)
