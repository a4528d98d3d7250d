"""The angles of rotary embeddings (arXiv 2104.09864), as transformers computes them, in NumPy.

Of the scaled ones, those are here whose frequencies are the same for all sequences: see
`control_plane/partition/checkpoint/rope.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from control_plane.partition.model.dense_config import DenseConfig
from functions.kernels.bfloat16 import Float32, f32_to_bf16


@dataclass(frozen=True)
class Rotation:
    """Turns positions into the cosines and sines of their angles."""

    frequencies: Float32
    """Radians a position [head_dim / 2]."""
    scale: float
    """The factor of all cosines and sines."""
    dtype: str
    """Of the result: "f32" or "bf16"."""

    @classmethod
    def of(cls, config: DenseConfig, dtype: str) -> "Rotation":
        """The rotation of a model, in `dtype`."""
        rope = config.rope_parameters
        plain = rope["rope_theta"] ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
        kind = rope.get("rope_type", "default")
        frequencies, scale = _SCALED[kind](plain, rope, config.max_position_embeddings)
        return cls(frequencies.astype(np.float32), scale, dtype)

    def at(self, positions: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Cosines and sines [T, head_dim] of positions [T]. Both halves of a head have the same angles."""
        angles = positions.astype(np.float32)[:, None] * self.frequencies
        cosine, sine = (
            np.tile(values * np.float32(self.scale), 2) for values in (np.cos(angles), np.sin(angles))
        )
        return (f32_to_bf16(cosine), f32_to_bf16(sine)) if self.dtype == "bf16" else (cosine, sine)


Frequencies = NDArray[np.float64]


def _default(plain: Frequencies, rope: Mapping[str, Any], context: int) -> tuple[Frequencies, float]:
    return plain, 1.0


def _linear(plain: Frequencies, rope: Mapping[str, Any], context: int) -> tuple[Frequencies, float]:
    return plain / rope["factor"], 1.0


def _llama3(plain: Frequencies, rope: Mapping[str, Any], context: int) -> tuple[Frequencies, float]:
    """Long wavelengths become longer by the factor, short ones stay, and those between are mixed."""
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    rotations = rope["original_max_position_embeddings"] * plain / (2 * math.pi)
    kept = np.clip((rotations - low) / (high - low), 0, 1)
    return plain * (kept + (1 - kept) / rope["factor"]), 1.0


def _yarn(plain: Frequencies, rope: Mapping[str, Any], context: int) -> tuple[Frequencies, float]:
    """YaRN (arXiv 2309.00071): the same with a linear ramp over dimensions, and all values are scaled."""
    original = rope["original_max_position_embeddings"]
    factor = rope["factor"] or context / original
    size = 2 * len(plain)

    def dimension(rotations: float) -> float:
        """The dimension that turns so many times within the original context."""
        return size * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope["rope_theta"]))

    low, high = dimension(rope.get("beta_fast") or 32), dimension(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    kept = 1 - np.clip((np.arange(len(plain)) - low) / (high - low or 0.001), 0, 1)
    return plain * (kept + (1 - kept) / factor), _yarn_scale(factor, rope)


def _yarn_scale(factor: float, rope: Mapping[str, Any]) -> float:
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1

    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return scale(rope["mscale"]) / scale(rope["mscale_all_dim"])
    return scale(1)


_SCALED = {"default": _default, "linear": _linear, "llama3": _llama3, "yarn": _yarn}
