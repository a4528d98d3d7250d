"""The angles of rotary embeddings (arXiv 2104.09864), as transformers computes them, in NumPy."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from control_plane.partition.model.program import RotationEntry
from functions.kernels.bfloat16 import Float32, f32_to_bf16


@dataclass(frozen=True)
class Rotation:
    """Turns positions into the cosines and sines of their angles."""

    frequencies: Float32
    """Radians a position [n]."""
    scale: float
    """The factor of all cosines and sines."""
    dtype: str
    """Of the result: "f32" or "bf16"."""

    @classmethod
    def of(cls, entry: RotationEntry, dtype: str) -> "Rotation":
        """A rotation of a program, in `dtype`."""
        return cls(np.array(entry.frequencies, np.float32), entry.scale, dtype)

    @classmethod
    def none(cls, dtype: str) -> "Rotation":
        """That of a layer that knows no positions: it has no angles."""
        return cls(np.empty(0, np.float32), 1.0, dtype)

    def at(self, positions: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Cosines and sines [T, 2n] of positions [T]. Both halves of a row have the same angles."""
        angles = positions.astype(np.float32)[:, None] * self.frequencies
        cosine, sine = (
            np.tile(values * np.float32(self.scale), 2) for values in (np.cos(angles), np.sin(angles))
        )
        return (f32_to_bf16(cosine), f32_to_bf16(sine)) if self.dtype == "bf16" else (cosine, sine)
