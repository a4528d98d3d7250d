"""Makes layer programs of a partition's dense file: which tensors a layer has, and what they mean.

To give a family programs, add it to the tables here. Its layers have to be grouped-query attention and a
softmax or sigmoid router; `csrc/layer.h` says where others fit in.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from control_plane.engine.kernels import DenseKernel, LinearLayer
from control_plane.engine.kernels.c_dense import CDenseKernel
from control_plane.engine.kernels.layer_program import (
    LayerProgram,
    LayerShape,
    LayerWeights,
    Router,
    SharedExpert,
)
from control_plane.engine.model.dense_file import DenseFile
from control_plane.errors import UnsupportedModel
from control_plane.partition.model.dense_config import DenseConfig
from functions.kernels.arguments import activation_dtype
from functions.kernels.bfloat16 import as_f32
from functions.kernels.packed_expert import ExpertShape
from functions.kernels.packed_matrix import LinearShape, pack_matrix
from functions.kernels.packed_tiles import Bytes

_FAMILIES = frozenset({"qwen2_moe", "qwen3_moe", "mixtral", "olmoe"})
"""The model types whose layers can be programs."""
_NORMS_QUERIES = frozenset({"qwen3_moe", "olmoe"})
"""Those that have norms of queries and keys."""


def has_programs(kernel: DenseKernel) -> bool:
    """Whether a kernel runs layer programs, which only those in C do."""
    return isinstance(kernel, CDenseKernel)


def check_family(model_type: str) -> None:
    """Raise `UnsupportedModel` for a family whose layers cannot be layer programs."""
    if model_type not in _FAMILIES:
        raise UnsupportedModel(f"there are no layer programs for {model_type}")


def layer_program(
    isa: str, file: DenseFile, config: DenseConfig, layer: int, has_experts: bool
) -> LayerProgram:
    """The program of one layer.

    Raises `PartitionError` for a tensor that is missing, ValueError for those that do not fit together.
    """
    name = f"model.layers.{layer}"
    attention = f"{name}.self_attn"
    query, key, value, output = (
        linear(file, f"{attention}.{part}_proj", has_bias=part in config.biased) for part in "qkvo"
    )
    query_norm, key_norm = (
        vector(file, f"{attention}.{part}_norm.weight") if config.model_type in _NORMS_QUERIES else None
        for part in "qk"
    )
    weights = LayerWeights(
        input_norm=vector(file, f"{name}.input_layernorm.weight"),
        post_attention_norm=vector(file, f"{name}.post_attention_layernorm.weight"),
        query=query,
        key=key,
        value=value,
        output=output,
        query_norm=query_norm,
        key_norm=key_norm,
        router=_router(file, config, layer) if has_experts else None,
        shared=_shared(file, config, f"{name}.mlp")
        if has_experts
        else SharedExpert(*_gated(file, f"{name}.mlp")),
    )
    return LayerProgram(isa, _shape(config, layer, query_norm), weights)


def linear(file: DenseFile, module: str, has_bias: bool = False) -> LinearLayer:
    """A linear layer. Routers are not stored packed: they are packed here, as they are."""
    bias = as_f32(vector(file, f"{module}.bias")) if has_bias else None
    if file.is_packed(module):
        packed = file.packed_matrix(f"{module}.weight")
        outputs, inputs = packed.shape
        return LinearLayer(LinearShape(outputs, inputs, packed.dtype), file.packed(module), bias)
    matrix = file.array(f"{module}.weight")
    outputs, inputs = matrix.shape
    shape = LinearShape(outputs, inputs, activation_dtype(matrix))
    return LinearLayer(shape, pack_matrix(shape, matrix), bias)


def vector(file: DenseFile, name: str) -> NDArray[Any]:
    """A copy of a small tensor, flat: in the file it may not be aligned."""
    return np.array(file.array(name)).reshape(-1)


def router_module(layer: int) -> str:
    """The name of a layer's router."""
    return f"model.layers.{layer}.mlp.gate"


def _shape(config: DenseConfig, layer: int, query_norm: NDArray[Any] | None) -> LayerShape:
    return LayerShape(
        hidden_size=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        epsilon=config.rms_norm_eps,
        window=config.windows[layer],
        clip=config.clip_qkv,
        norms_heads=query_norm is not None and query_norm.size == config.head_dim,
    )


def _router(file: DenseFile, config: DenseConfig, layer: int) -> Router:
    module = router_module(layer)
    return Router(linear(file, module), config.num_experts_per_tok, config.norm_topk_prob)


def _shared(file: DenseFile, config: DenseConfig, mlp: str) -> SharedExpert | None:
    """The shared expert of a layer with experts."""
    if config.shared_expert_intermediate_size is None:
        return None
    return SharedExpert(
        *_gated(file, f"{mlp}.shared_expert"), vector(file, f"{mlp}.shared_expert_gate.weight")
    )


def _gated(file: DenseFile, module: str) -> tuple[ExpertShape, Bytes]:
    gate, up, down = (file.packed_matrix(f"{module}.{part}_proj.weight") for part in ("gate", "up", "down"))
    hidden_size, intermediate_size = down.shape
    for matrix in (gate, up):
        if (matrix.shape, matrix.dtype) != (down.shape[::-1], gate.dtype):
            raise ValueError(f"{module} is packed of {gate}, {up} and {down}")
    return ExpertShape(hidden_size, intermediate_size, gate.dtype, down.dtype), file.packed(module)
