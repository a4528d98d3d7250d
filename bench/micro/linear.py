"""Compares quantised linear layers with torch and with the memory bus: `python -m bench.micro.linear`.

The sizes are those of Qwen1.5-MoE-A2.7B's attention and head. All implementations use the same number of
threads. "read" is NumPy reading as many bytes as the packed weights have.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from bench.micro.contest import Runs, TorchMatrix, measure, read
from control_plane.engine.kernels import LinearLayer, load_dense_kernel
from functions.kernels import LinearShape
from functions.kernels.bfloat16 import f32_to_bf16
from functions.kernels.packed_matrix import pack_matrix

INPUTS = 2048
LAYERS = {"attention": (2048, (1, 6, 32, 512)), "head": (151936, (1, 6, 32))}
"""The measured layers by name: number of outputs, and numbers of rows."""
DTYPES = ("int8", "int4_min")
PACKED_OUTPUTS = 2048
"""Outputs that are packed. The head repeats their tiles, as packing it takes minutes."""
ROUNDS = 21
UNCACHED_BYTES = 450_000_000


@dataclass(frozen=True)
class Copies:
    """Copies of one random layer, so many that a copy is no longer cached when its turn comes again."""

    shape: LinearShape
    packed: np.ndarray
    """Packed weights [copies, nbytes]."""
    torch_bf16: list[TorchMatrix]
    torch_int8: list[TorchMatrix]

    @classmethod
    def random(cls, outputs: int, dtype: str) -> "Copies":
        """Random weights of a layer in a dtype."""
        shape = LinearShape(outputs, INPUTS, dtype)
        some = LinearShape(PACKED_OUTPUTS, INPUTS, dtype)
        matrix = torch.randn(outputs, INPUTS) / INPUTS**0.5
        packed = pack_matrix(some, matrix[:PACKED_OUTPUTS].numpy())
        copies = -(-UNCACHED_BYTES // shape.nbytes)
        return cls(
            shape=shape,
            packed=np.tile(np.resize(packed, shape.nbytes), (copies, 1)),
            torch_bf16=[TorchMatrix.of("bf16", matrix) for _ in range(copies)],
            torch_int8=[TorchMatrix.of("int8", matrix) for _ in range(copies)],
        )

    def runs(self, rows: int, threads: int, readers: ThreadPoolExecutor) -> Runs:
        """All implementations, for a random input of `rows` rows. `readers` has `threads` threads."""
        x = torch.randn(rows, INPUTS)
        return {
            "read": self._read(threads, readers),
            "torch bf16": lambda copy: self.torch_bf16[copy].times(x.bfloat16()),
            "torch int8": lambda copy: self.torch_int8[copy].times(x.bfloat16()),
            "ours": self._ours(threads, x.numpy()),
        }

    def _read(self, threads: int, readers: ThreadPoolExecutor) -> Callable[[int], object]:
        def run(copy: int) -> object:
            return list(readers.map(read, np.array_split(self.packed[copy].view(np.int64), threads)))

        return run

    def _ours(self, threads: int, x: np.ndarray) -> Callable[[int], object]:
        kernel, rows = load_dense_kernel(), f32_to_bf16(x)
        layers = [LinearLayer(self.shape, packed) for packed in self.packed]
        return lambda copy: kernel.linear([layers[copy]], rows, threads=threads)


def main() -> None:
    """Measure all layers, with one thread and with all cores, and print a table."""
    print(f"\nLinear layers of {INPUTS} inputs, medians of {ROUNDS} rounds\n")
    header = f"{'layer':10}{'weights':10}{'threads':>7}{'rows':>5}  {'by':12}{'ms':>9}{'GB/s':>8}"
    print(header + f"{'of read':>9}{'x torch bf16':>14}")
    for name, (outputs, row_counts) in LAYERS.items():
        for dtype in DTYPES:
            copies = Copies.random(outputs, dtype)
            for threads in sorted({1, os.cpu_count() or 1}):
                measure_layer(name, copies, threads, row_counts)


def measure_layer(name: str, copies: Copies, threads: int, row_counts: tuple[int, ...]) -> None:
    """Measure one layer, and print its lines of the table."""
    torch.set_num_threads(threads)
    shape = copies.shape
    with ThreadPoolExecutor(threads) as readers:
        for rows in row_counts:
            times = measure(copies.runs(rows, threads, readers), len(copies.packed), ROUNDS)
            for by, seconds in times.items():
                print(
                    f"{name:10}{shape.dtype:10}{threads:7}{rows:5}  {by:12}{seconds * 1e3:9.3f}"
                    f"{shape.nbytes / seconds / 1e9:8.1f}{times['read'] / seconds:9.0%}"
                    f"{times['torch bf16'] / seconds:14.2f}"
                )


if __name__ == "__main__":
    main()
