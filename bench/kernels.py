"""The expert kernels against torch and against the memory's speed: `python -m bench.kernels`.

One thread runs one expert of Qwen1.5-MoE-A2.7B at a time, walking over so many distinct copies that none is
still cached when its turn comes again. The contestants take turns within each round, so that other load on the
machine meets them alike, and medians are compared. "read" is the pace for a single row: NumPy reads as many
bytes as the expert has, and does nothing with them.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from functions.expert.kernels import ExpertShape, available_isas, load_kernel
from functions.expert.kernels.packing import f32_to_bf16, pack_expert

HIDDEN_SIZE, INTERMEDIATE_SIZE = 2048, 1408
ROWS = (1, 4, 16, 64)
ROUNDS = 31
UNCACHED_BYTES = 450_000_000

Contestants = dict[str, Callable[[int], object]]
"""By name: what runs the expert of that number once."""


@dataclass(frozen=True)
class Result:
    """How long one contestant takes for one expert: the median, in seconds."""

    dtype: str
    rows: int
    name: str
    seconds: float


def main() -> None:
    torch.set_num_threads(1)
    results: list[Result] = []
    print(f"One expert of {HIDDEN_SIZE} x {INTERMEDIATE_SIZE}, one thread, median of {ROUNDS} rounds.\n")
    print(f"{'weights':8}{'rows':>5}  {'by':8}{'ms':>9}{'GB/s':>8}{'GFLOP/s':>9}{'of read':>9}{'torch / it':>12}")
    for dtype in ("bf16", "int8", "f32"):
        expert = Expert(dtype)
        for rows in ROWS:
            group = measure(dtype, rows, expert.contestants(rows))
            results += group
            print_group(expert.shape, group)
    print()
    for verdict in verdicts(results):
        print(verdict)


class Expert:
    """Uncached copies of one random expert: packed for our kernels, and as tensors for torch."""

    def __init__(self, dtype: str) -> None:
        self.shape = ExpertShape(HIDDEN_SIZE, INTERMEDIATE_SIZE, dtype)
        self._copies = -(-UNCACHED_BYTES // self.shape.nbytes)
        gate, up, down = (torch.randn(size) / size[1] ** 0.5 for size in self._sizes())
        packed = pack_expert(self.shape, gate.numpy(), up.numpy(), down.numpy())
        self._block = np.tile(packed, self._copies)
        self._offsets = np.arange(self._copies) * self.shape.nbytes
        weights = (torch.cat((gate, up)), down)
        self._torch = [[_as_torch(dtype, w) for w in weights] for _ in range(self._copies)]
