"""What both ways to compute a model in transformers' modules have in common."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from control_plane.engine.experts.dispatcher import Dispatcher
from control_plane.engine.experts.predictor import RouterWeights
from control_plane.engine.model.dense_model import ModelSizes
from control_plane.engine.model.transformers_model.embedding import EmbeddingInFile
from control_plane.engine.model.transformers_model.experts import ComputeExperts, attach_experts
from control_plane.engine.model.transformers_model.layers import PackedGatedFFN, PackedLinear
from control_plane.engine.model.transformers_model.routers import RouterSearch
from control_plane.engine.model.transformers_model.tensor_views import to_numpy, to_torch
from control_plane.partition.checkpoint.rope import context_length

FEW_ROWS = 32
"""Up to this many rows, torch finishes its small products before a second thread has woken up."""

UNLIMITED_CONTEXT = 1 << 20
"""Tokens of the longest sequence of a model that states no limit."""


class TransformersModel:
    """A model of transformers whose experts are remote. Its subclasses are `DenseModel`s."""

    def __init__(
        self, model: PreTrainedModel, experts: Mapping[str, int], dtype: torch.dtype, threads: int
    ) -> None:
        """`experts` are the names of the experts' modules and the numbers of their layers; `dtype` is the
        type of the rows that are sent to them."""
        self.model = model
        self._base: Any = model.base_model
        if self._base is model:
            raise NotImplementedError(f"{type(model).__name__} has no module without a head")
        self._path = attach_experts(model, experts, dtype)
        self._threads = threads
        self._is_packed = isinstance(getattr(model, "lm_head", None), PackedLinear)
        """Whether our kernel, which has its own threads, computes all large products."""
        self._arguments = frozenset(inspect.signature(self._base.forward).parameters)
        self._routers = RouterSearch(model, experts)
        self._output: Any = None
        """The type of what the modules before the head return."""

    @property
    def sizes(self) -> ModelSizes:
        config: Any = self.model.config
        positions = getattr(config, "max_position_embeddings", None) or UNLIMITED_CONTEXT
        context = context_length(positions, getattr(config, "rope_parameters", None))
        return ModelSizes(config.vocab_size, context, max(_widths(self._base)))

    @property
    def stored_embedding_bytes(self) -> int:
        embedding = self.model.get_input_embeddings()
        return embedding.stored.nbytes if isinstance(embedding, EmbeddingInFile) else 0

    @property
    def has_masks(self) -> bool:
        return True

    def attach(self, dispatcher: Dispatcher) -> None:
        def compute(
            layer: int, rows: NDArray[Any], index: NDArray[Any], weights: NDArray[Any]
        ) -> NDArray[Any]:
            return dispatcher.begin(layer, rows, index, weights).wait()

        self._path.compute = self._through(compute)

    def router(self, layer: int) -> RouterWeights | None:
        return self._routers.found.get(layer)

    @torch.inference_mode()
    def logits(self, hidden_states: NDArray[Any]) -> NDArray[Any]:
        """The family's own code computes them: it may scale them, or cap them."""
        rows = to_torch(hidden_states)[None]
        # The head's code is the model's, which gets its input from the modules before it.
        with _returning(self._base, self._output(last_hidden_state=rows)):
            logits = self.model(input_ids=torch.zeros(1, rows.shape[1], dtype=torch.int64)).logits
        return to_numpy(logits[0])

    @property
    def _cache_argument(self) -> str:
        # transformers 5.24 has renamed it.
        return "cache" if "cache" in self._arguments else "past_key_values"

    def _through(self, compute: ComputeExperts) -> ComputeExperts:
        """How the experts' modules reach the experts."""
        return compute

    def _forward(self, token_ids: list[int], **options: Any) -> torch.Tensor:
        """The final hidden states [N, H] of tokens."""
        output = self._base(input_ids=torch.tensor([token_ids]), **options)
        self._output = type(output)
        hidden_states: torch.Tensor = output.last_hidden_state[0]
        return hidden_states

    @contextmanager
    def _few_threads(self, rows: int) -> Iterator[None]:
        """Until the context ends, torch uses as many threads as are good for so many rows."""
        few = self._is_packed and rows <= FEW_ROWS
        torch.set_num_threads(1 if few else self._threads)
        try:
            yield
        finally:
            torch.set_num_threads(self._threads)


@contextmanager
def _returning(module: nn.Module, output: object) -> Iterator[None]:
    """Until the context ends, the module returns this whatever it is called with."""
    module.forward = lambda *_, **__: output
    try:
        yield
    finally:
        del module.forward


def _widths(module: nn.Module) -> Iterator[int]:
    """The widths of rows in a module's linear layers."""
    for each in module.modules():
        if isinstance(each, nn.Linear):
            yield max(each.out_features, each.in_features)
        elif isinstance(each, PackedLinear | PackedGatedFFN):
            yield from (size for matrix in each.sources().values() for size in matrix.shape)
