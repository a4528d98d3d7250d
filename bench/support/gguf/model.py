"""A checkpoint's tensors as those of a GGUF file, which are made when they are written."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from transformers import AutoConfig

from bench.support.gguf.conversion import converted_tensor, is_stored
from bench.support.gguf.metadata import Metadata, described
from bench.support.gguf.tensors import BF16, BLOCK_VALUES, BLOCKS, F32, MXFP4, GgufTensor
from control_plane.errors import UnsupportedModel
from control_plane.partition.checkpoint.reader import Checkpoint
from control_plane.partition.checkpoint.tensors.tensor import Tensor
from functions.kernels.bfloat16 import as_f32

_EXPERT = re.compile(r"model\.layers\.(\d+)\.\w+\.experts\.(\d+)\.(\w+)\.weight")
_PARTS = {
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "w1": "gate",
    "w3": "up",
    "w2": "down",
}
MODEL_TYPES = (
    "qwen2_moe",
    "qwen3_moe",
    "mixtral",
    "olmoe",
    "qwen3_next",
    "qwen3_5_moe_text",
    "deepseek_v2",
    "deepseek_v3",
    "glm4_moe_lite",
    "glm4_moe",
    "gpt_oss",
    "lfm2_moe",
)
"""The families that can be written: those whose published names are known here."""
_PUBLISHED = {"block_sparse_moe.gate": "mlp.gate"}
"""Modules whose published names are not those of transformers' modules."""
_IN_F32 = re.compile(r".*(\.bias|\.(ffn_gate_inp(_shexp)?|ssm_conv1d|shortconv\.conv|ssm_norm)\.weight)")
"""Matrices of which llama.cpp computes in float32 only."""


@dataclass(frozen=True)
class GgufModel:
    """What the file has."""

    architecture: str
    metadata: Metadata
    vocabulary: int
    """The number of tokens."""
    tensors: list[GgufTensor]

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint, matrices: str = BF16) -> Self:
        """The model, with matrices of a type. gpt-oss has experts in MXFP4 if it is one of blocks.

        Raises `UnsupportedModel` for a family that is not in MODEL_TYPES.
        """
        model_type = checkpoint.config.get("model_type")
        if model_type not in MODEL_TYPES:
            known = ", ".join(MODEL_TYPES)
            raise UnsupportedModel(
                f"{checkpoint.folder}: {model_type!r} is not written for llama.cpp; these are: {known}"
            )
        config: Any = AutoConfig.for_model(**checkpoint.config)
        has_mxfp4 = model_type == "gpt_oss" and matrices in BLOCKS
        tensors = list(_tensors(checkpoint.tensors, config, matrices, MXFP4 if has_mxfp4 else matrices))
        return cls(*described(config), config.vocab_size, tensors)


def _tensors(
    published: Mapping[str, Tensor], config: Any, matrices: str, experts: str
) -> Iterator[GgufTensor]:
    stacks: dict[str, dict[int, Tensor]] = {}
    for name, tensor in published.items():
        if match := _EXPERT.fullmatch(name):
            stack = stacks.setdefault(f"blk.{match[1]}.ffn_{_PARTS[match[3]]}_exps.weight", {})
            stack[int(match[2])] = tensor
        elif is_stored(name, config):
            yield from _converted(name, tensor, config, matrices, experts)
    for name, stack in stacks.items():
        yield _stacked(name, [stack[number] for number in sorted(stack)], experts)


def _stacked(name: str, matrices: list[Tensor], kind: str) -> GgufTensor:
    """A layer's matrices of one part of its experts, one after the other."""

    def pieces() -> Iterator[NDArray[Any]]:
        for matrix in matrices:
            yield from matrix.chunks()

    shape = (len(matrices), *matrices[0].shape)
    return GgufTensor(name, shape, _kind(name, shape, kind), pieces)


def _converted(
    published: str, tensor: Tensor, config: Any, matrices: str, experts: str
) -> Iterator[GgufTensor]:
    """The tensors that one becomes. One of all experts is read by expert; others that change, as a whole."""
    source = published
    for name, module in _PUBLISHED.items():
        source = source.replace(name, module)
    is_fused = "experts." in source and len(tensor.shape) == 3
    shape = (1, *tensor.shape[1:]) if is_fused else tensor.shape
    probe = np.broadcast_to(np.float32(0), shape)
    for name, part in converted_tensor(source, probe, config).items():
        stored = (tensor.shape[0], *part.shape[1:]) if is_fused else part.shape

        def pieces(name: str = name) -> Iterator[NDArray[Any]]:
            size = tensor.size // tensor.shape[0] if is_fused else tensor.size
            for start in range(0, tensor.size, size):
                values = as_f32(tensor.read(start, size)).reshape(shape)
                yield np.ascontiguousarray(converted_tensor(source, values, config)[name])

        kind = _kind(name, stored, experts if is_fused else matrices)
        yield GgufTensor(name, stored, kind, tensor.chunks if part is probe else pieces)


def _kind(name: str, shape: tuple[int, ...], matrices: str) -> str:
    """The type of a tensor: vectors, and rows that are no whole blocks, are plain."""
    if len(shape) == 1 or _IN_F32.fullmatch(name):
        return F32
    return matrices if matrices not in BLOCKS or shape[-1] % BLOCK_VALUES == 0 else F32
