"""Times implementations of the same computation in turns, and has what ours compete with: torch, a read."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from torch.nn import functional

Runs = dict[str, Callable[[int], object]]
"""Functions by name of the implementation. A call with i computes once with copy i of the weights."""


def measure(runs: Runs, copies: int, rounds: int) -> dict[str, float]:
    """The median time of one run of each implementation, in seconds.

    Some implementations share the copies. They walk over them far apart, so that none finds a copy in the
    cache that another one has just read.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    apart = copies // len(runs)
    for round_number in range(rounds):
        for place, (name, run) in enumerate(runs.items()):
            start = time.perf_counter()
            run((round_number + place * apart) % copies)
            seconds[name].append(time.perf_counter() - start)
    return {name: median(times) for name, times in seconds.items()}


def read(packed: np.ndarray) -> object:
    """Read packed weights once, in order, as fast as NumPy can."""
    return np.bitwise_or.reduce(packed.view(np.int64))


@dataclass(frozen=True)
class TorchMatrix:
    """A weight matrix [N, K] for torch: int8 with a bfloat16 scale for each row, or floats."""

    weight: torch.Tensor
    scale: torch.Tensor | None

    @classmethod
    def of(cls, dtype: str, matrix: torch.Tensor) -> "TorchMatrix":
        """Convert a float32 matrix [N, K] to "f32", "bf16" or, for any other dtype, int8."""
        if dtype in ("f32", "bf16"):
            return cls(matrix.bfloat16() if dtype == "bf16" else matrix.clone(), None)
        scale = matrix.abs().amax(dim=1) / 127
        return cls((matrix / scale[:, None]).round().to(torch.int8), scale.bfloat16())

    def times(self, states: torch.Tensor) -> torch.Tensor:
        """Multiply `states` [rows, K]. Returns [rows, N]."""
        if self.scale is None:
            return functional.linear(states, self.weight)
        return torch._weight_int8pack_mm(states, self.weight, self.scale)
