"""Makes layer programs of a partition's dense file: which tensors a layer has, and what they mean.

To give a family programs, add it to the tables here. Its layers have to be grouped-query attention and a
softmax or sigmoid router; `csrc/layer.h` says where others fit in.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from control_plane.engine.kernels import LinearLayer
from control_plane.engine.kernels.layer_program import (
    LayerProgram,
    LayerShape,
    LayerWeights,
    Router,
    SharedExpert,
    can_compile,
)
from control_plane.engine.model.dense_file import DenseFile
from functions.kernels.activations import as_f32
from functions.kernels.arguments import activation_dtype
from functions.kernels.packed_expert import ExpertShape
from functions.kernels.packed_matrix import LinearShape, pack_matrix
from functions.kernels.packed_tiles import Bytes

_FAMILIES = frozenset({"qwen2_moe", "qwen3_moe", "mixtral", "olmoe"})
"""The model types whose layers can be programs."""
_NORMS_QUERIES = frozenset({"qwen3_moe", "olmoe"})
"""Those that have norms of queries and keys."""
_BIASES = {"qkv_bias": "qkv", "attention_bias": "qkvo"}
"""Keys of configs, and the projections that have a bias if they are true."""


def has_program(model_type: str) -> bool:
    """Whether the layers of a family can be layer programs in this installation."""
    return model_type in _FAMILIES and can_compile()


def head_dim(config: Any) -> int:
    """The size of a head, by transformers' config."""
    size: int | None = getattr(config, "head_dim", None)
    return size or int(config.hidden_size // config.num_attention_heads)


def layer_program(isa: str, file: DenseFile, config: Any, layer: int, has_experts: bool) -> LayerProgram:
    """The program of one layer; `config` is transformers'.

    Raises `PartitionError` for a tensor that is missing, ValueError for those that do not fit together.
    """
    name = f"model.layers.{layer}"
    attention = f"{name}.self_attn"
    biased = {part for key, parts in _BIASES.items() if getattr(config, key, False) for part in parts}
    query, key, value, output = (
        linear(file, f"{attention}.{part}_proj", has_bias=part in biased) for part in "qkvo"
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
    """A linear layer. Routers and tied heads are not stored packed: they are packed here, as they are."""
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


def router_module(file: DenseFile, layer: int) -> str:
    """The name of a layer's router. Mixtral's checkpoints call the module that it is in by another name."""
    name = f"model.layers.{layer}"
    other = f"{name}.block_sparse_moe.gate"
    return other if f"{other}.weight" in file else f"{name}.mlp.gate"


def _shape(config: Any, layer: int, query_norm: NDArray[Any] | None) -> LayerShape:
    size = head_dim(config)
    return LayerShape(
        hidden_size=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=size,
        epsilon=config.rms_norm_eps,
        window=_window(config, layer),
        clip=getattr(config, "clip_qkv", None),
        norms_heads=query_norm is not None and query_norm.size == size,
    )


def _window(config: Any, layer: int) -> int | None:
    """The sliding window of a layer. `layer_types` says which layers have one, if only some do."""
    types = getattr(config, "layer_types", None)
    if types is not None and types[layer] != "sliding_attention":
        return None
    window: int | None = getattr(config, "sliding_window", None)
    return window or None


def _router(file: DenseFile, config: Any, layer: int) -> Router:
    # Mixtral's weights always add up to 1, and its config has no such key.
    normalised = getattr(config, "norm_topk_prob", True)
    return Router(linear(file, router_module(file, layer)), config.num_experts_per_tok, normalised)


def _shared(file: DenseFile, config: Any, mlp: str) -> SharedExpert | None:
    """The shared expert of a layer with experts."""
    if getattr(config, "shared_expert_intermediate_size", None) is None:
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
