"""Makes layer programs of a partition's dense file: which tensors a layer has, and what they mean.

A tensor that is there is used: so a layer with biases or with norms of queries and keys needs no name of its
family here.
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
from control_plane.errors import PartitionError
from functions.kernels.activations import as_f32
from functions.kernels.arguments import activation_dtype
from functions.kernels.packed_expert import ExpertShape, pack_expert
from functions.kernels.packed_matrix import LinearShape, pack_matrix

_FAMILIES = frozenset({"qwen2_moe", "qwen3_moe", "mixtral", "olmoe"})
"""The model types whose layers are grouped-query attention and a softmax router."""


def has_program(model_type: str) -> bool:
    """Whether the layers of a family can be layer programs in this installation."""
    return model_type in _FAMILIES and can_compile()


def layer_program(isa: str, file: DenseFile, config: Any, layer: int) -> LayerProgram:
    """The program of one layer; `config` is transformers'. Raises `PartitionError`."""
    name = f"model.layers.{layer}"
    shape = _shape(file, config, layer)
    attention = f"{name}.self_attn"
    query, key, value, output = (linear(file, f"{attention}.{part}_proj") for part in "qkvo")
    weights = LayerWeights(
        input_norm=small(file, f"{name}.input_layernorm.weight"),
        post_attention_norm=small(file, f"{name}.post_attention_layernorm.weight"),
        query=query,
        key=key,
        value=value,
        output=output,
        query_norm=_optional(file, f"{attention}.q_norm.weight"),
        key_norm=_optional(file, f"{attention}.k_norm.weight"),
        router=_router(file, config, layer),
        shared=_shared(file, f"{name}.mlp"),
    )
    try:
        return LayerProgram(isa, shape, weights)
    except ValueError as error:
        raise PartitionError(f"layer {layer} of the dense part: {error}") from error


def linear(file: DenseFile, module: str) -> LinearLayer:
    """A linear layer. One that is not stored packed is packed here, as its weights are."""
    bias = _optional(file, f"{module}.bias")
    if file.is_packed(module):
        outputs, inputs = file.packed_shape(f"{module}.weight")
        shape, packed = LinearShape(outputs, inputs, "int8"), file.packed(module)
    else:
        matrix = file.array(f"{module}.weight")
        shape = LinearShape(*matrix.shape, activation_dtype(matrix))
        packed = pack_matrix(shape, matrix)
    return LinearLayer(shape, packed, None if bias is None else as_f32(bias))


def small(file: DenseFile, name: str) -> NDArray[Any]:
    """A copy of a small tensor: in the file it may not be aligned."""
    return np.array(file.array(name))


def _optional(file: DenseFile, name: str) -> NDArray[Any] | None:
    return small(file, name) if name in file else None


def _shape(file: DenseFile, config: Any, layer: int) -> LayerShape:
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    norm = f"model.layers.{layer}.self_attn.q_norm.weight"
    return LayerShape(
        hidden_size=config.hidden_size,
        heads=heads,
        kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        epsilon=config.rms_norm_eps,
        window=_window(config, layer),
        clip=getattr(config, "clip_qkv", None),
        norms_heads=norm in file and file.array(norm).size == head_dim,
    )


def _window(config: Any, layer: int) -> int | None:
    """The sliding window of a layer. `layer_types` says which layers have one, if only some do."""
    types = getattr(config, "layer_types", None)
    if types is not None and types[layer] != "sliding_attention":
        return None
    window: int | None = getattr(config, "sliding_window", None)
    return window or None


def router_module(file: DenseFile, layer: int) -> str:
    """The name of a layer's router. Mixtral's checkpoints call the module that it is in by another name."""
    name = f"model.layers.{layer}"
    other = f"{name}.block_sparse_moe.gate"
    return other if f"{other}.weight" in file else f"{name}.mlp.gate"


def _router(file: DenseFile, config: Any, layer: int) -> Router | None:
    module = router_module(file, layer)
    if f"{module}.weight" not in file:
        return None
    # Mixtral's always add up to 1, and its config has no such key.
    normalised = getattr(config, "norm_topk_prob", True)
    return Router(linear(file, module), config.num_experts_per_tok, normalised)


def _shared(file: DenseFile, mlp: str) -> SharedExpert | None:
    """The shared expert of a layer with experts, or the gated FFN of one without."""
    if any(f"{mlp}.{name}" in file for name in ("down_proj.weight", "packed")):
        return SharedExpert(*_gated_ffn(file, mlp))
    shared = f"{mlp}.shared_expert"
    if not any(f"{shared}.{name}" in file for name in ("down_proj.weight", "packed")):
        return None
    gate = _optional(file, f"{shared}_gate.weight")
    return SharedExpert(*_gated_ffn(file, shared), None if gate is None else gate.reshape(-1))


def _gated_ffn(file: DenseFile, module: str) -> tuple[ExpertShape, NDArray[np.uint8]]:
    if file.is_packed(module):
        hidden_size, intermediate_size = file.packed_shape(f"{module}.down_proj.weight")
        return ExpertShape(hidden_size, intermediate_size, "int8"), file.packed(module)
    gate, up, down = (file.array(f"{module}.{part}_proj.weight") for part in ("gate", "up", "down"))
    shape = ExpertShape(*down.shape, activation_dtype(down))
    return shape, pack_expert(shape, gate, up, down)
