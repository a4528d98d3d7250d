"""Makes layer programs of a partition's dense file, as its manifest describes them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from control_plane.engine.kernels import DenseKernel, LinearLayer
from control_plane.engine.kernels.c_dense import CDenseKernel
from control_plane.engine.kernels.layer_parts import LayerShape, LayerWeights, Router, SharedExpert
from control_plane.engine.kernels.layer_program import LayerProgram
from control_plane.engine.model.dense_file import DenseFile
from control_plane.partition.manifest import Manifest
from control_plane.partition.model.program import LayerEntry, Program, RouterEntry
from functions.kernels.arguments import activation_dtype
from functions.kernels.bfloat16 import as_f32
from functions.kernels.packed_expert import ExpertShape
from functions.kernels.packed_matrix import LinearShape, pack_matrix
from functions.kernels.packed_tiles import Bytes


def has_programs(kernel: DenseKernel) -> bool:
    """Whether a kernel runs layer programs, which only those in C do."""
    return isinstance(kernel, CDenseKernel)


def layer_program(
    isa: str, file: DenseFile, manifest: Manifest, program: Program, number: int
) -> LayerProgram:
    """The program of one layer.

    Raises `PartitionError` for a tensor that is missing, ValueError for those that do not fit together.
    """
    layer = program.layers[number]
    query, key, value, output = (linear(file, program, f"{layer.attention}.{part}_proj") for part in "qkvo")
    weights = LayerWeights(
        query=query,
        key=key,
        value=value,
        output=output,
        input_norm=_optional(file, layer.input_norm),
        attention_norm=_optional(file, layer.attention_norm),
        ffn_norm=_optional(file, layer.ffn_norm),
        ffn_output_norm=_optional(file, layer.ffn_output_norm),
        query_norm=_optional(file, layer.query_norm),
        key_norm=_optional(file, layer.key_norm),
        gate=None if layer.gate is None else linear(file, program, layer.gate),
        router=None
        if layer.router is None
        else _router(file, program, layer.router, manifest.num_experts_per_tok),
        shared=_shared(file, layer),
    )
    rotation = None if layer.rotation is None else program.rotations[layer.rotation]
    shape = LayerShape(
        hidden_size=manifest.hidden_size,
        heads=layer.heads,
        kv_heads=program.kv_heads,
        head_dim=program.head_dim,
        epsilon=program.epsilon,
        scaling=program.scaling,
        window=layer.window,
        clip=program.clip,
        residual=program.residual_scale,
        norms_heads=weights.query_norm is not None and weights.query_norm.size == program.head_dim,
        norms_rotated=layer.norms_rotated,
        rotated=0 if rotation is None else 2 * len(rotation.frequencies),
        interleaved=rotation is not None and rotation.interleaved,
        gate_function=layer.gate_function,
    )
    return LayerProgram(isa, shape, weights, manifest.dtype)


def linear(file: DenseFile, program: Program, module: str) -> LinearLayer:
    """A linear layer. Routers are not stored packed: they are packed here, as they are."""
    name = f"{module}.bias"
    bias = as_f32(vector(file, name)) if name in program.biases else None
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


def ffn_width(file: DenseFile, layer: LayerEntry) -> int:
    """The intermediate size of a layer's gated FFN; 0 for a layer without."""
    return 0 if layer.ffn is None else file.packed_matrix(f"{layer.ffn}.down_proj.weight").shape[1]


def _optional(file: DenseFile, name: str | None) -> NDArray[Any] | None:
    return None if name is None else vector(file, name)


def _router(file: DenseFile, program: Program, router: RouterEntry, top_k: int) -> Router:
    correction = _optional(file, router.correction)
    return Router(
        linear=linear(file, program, router.module),
        top_k=top_k,
        normalised=router.normalised,
        scores=router.scores,
        scale=router.scale,
        correction=None if correction is None else as_f32(correction),
        groups=router.groups,
        chosen_groups=router.chosen_groups,
    )


def _shared(file: DenseFile, layer: LayerEntry) -> SharedExpert | None:
    if layer.ffn is None:
        return None
    return SharedExpert(*_gated(file, layer.ffn), _optional(file, layer.ffn_gate))


def _gated(file: DenseFile, module: str) -> tuple[ExpertShape, Bytes]:
    gate, up, down = (file.packed_matrix(f"{module}.{part}_proj.weight") for part in ("gate", "up", "down"))
    hidden_size, intermediate_size = down.shape
    for matrix in (gate, up):
        if (matrix.shape, matrix.dtype) != (down.shape[::-1], gate.dtype):
            raise ValueError(f"{module} is packed of {gate}, {up} and {down}")
    return ExpertShape(hidden_size, intermediate_size, gate.dtype, down.dtype), file.packed(module)
