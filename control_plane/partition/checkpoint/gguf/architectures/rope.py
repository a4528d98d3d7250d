"""The rotary embeddings of a model, by its file's metadata."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from control_plane.errors import PartitionError
from control_plane.partition.checkpoint.gguf.architectures.metadata import Metadata
from control_plane.partition.checkpoint.tensors.tensor import Tensor
from functions.kernels.bfloat16 import Float32

ROPE_FACTORS = "rope_freqs.weight"
"""The tensor with a divisor for each frequency, in which llama.cpp has Llama 3.1's scaling."""
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What all models with this scaling have, besides its factor."""
_YARN = {
    "yarn_attn_factor": "attention_factor",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}


def rope_parameters(metadata: Metadata, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The rotary embeddings, as transformers 5 has them in config.json. Raises PartitionError."""
    rope = {"rope_type": "default", "rope_theta": metadata.fraction("rope.freq_base", 1e4)}
    key = f"{metadata.architecture}.rope.scaling.type"
    # llama.cpp takes a factor without a type for that of linear scaling, which older files have.
    kind = metadata.text(key) or "linear"
    factor = metadata.fraction("rope.scaling.factor", metadata.fraction("rope.scale_linear", 0.0)) or 1.0
    metadata.check("rope.scaling.attn_factor", 1.0)
    metadata.check("rope.scaling.yarn_ext_factor", 1.0)
    if kind not in ("none", "linear", "yarn"):
        raise PartitionError(f"{metadata.path}: the metadata's {key} is {kind[:40]!r}, not linear or yarn")
    if kind == "yarn":
        original = metadata.number("rope.scaling.original_context_length", metadata.number("context_length"))
        rope |= {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
        stated = {name: f"rope.scaling.{key}" for key, name in _YARN.items()}
        rope |= {name: metadata.fraction(key) for name, key in stated.items() if metadata.has(key)}
    elif kind == "linear" and factor != 1.0:
        rope |= {"rope_type": "linear", "factor": factor}
    if factors := tensors.get(ROPE_FACTORS):
        rope |= _scaling_of_llama3(rope, factors)
    return rope


def _scaling_of_llama3(rope: Mapping[str, Any], stored: Tensor) -> dict[str, Any]:
    """The scaling that gives such factors; none if they are all 1. Raises PartitionError for others."""
    factors = np.asarray(stored.read(0, stored.size), np.float32)
    if (factors == 1).all():
        return {}
    factor = round(float(factors.max()), 4)
    if rope["rope_type"] != "default" or not np.allclose(
        factors, llama3_factors(rope["rope_theta"], stored.size, factor), rtol=1e-4
    ):
        raise PartitionError(f"{stored.path}: {ROPE_FACTORS} has factors other than those of Llama 3.1")
    return {"rope_type": "llama3", "factor": factor, **_LLAMA3}


def llama3_factors(theta: float, count: int, factor: float) -> Float32:
    """By what Llama 3.1 divides its frequencies [count]: 1 for high ones, `factor` for low ones."""
    waves = 2 * math.pi * theta ** (np.arange(count) / count)
    low, high, original = _LLAMA3.values()
    smooth = np.clip((original / waves - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
