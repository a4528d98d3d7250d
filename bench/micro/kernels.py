"""Compares the expert kernels with torch and with the memory bus: `python -m bench.micro.kernels`.

One thread runs one expert of Qwen1.5-MoE-A2.7B at a time, and walks over so many copies of it that none is
still cached when its turn comes again. The implementations take turns in every round, so that other load on
the machine slows all of them alike, and their medians are compared. "read" is the upper bound for a single
row: NumPy reads as many bytes as the expert has, in order. torch multiplies int8 weights where ours have four
bits. `ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2` limits torch to AVX2; the aims are then those of our
kernel for it. The linear layers of linear.py follow.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from bench.micro import linear
from bench.micro.contest import Runs, TorchMatrix, measure, read
from functions.kernels import ExpertShape, available_isas, load_kernel
from functions.kernels.bfloat16 import f32_to_bf16
from functions.kernels.packed_expert import pack_expert

HIDDEN_SIZE, INTERMEDIATE_SIZE = 2048, 1408
DTYPES = ("f32", "bf16", "int8", "int4", "int4_nl", "mxfp4", "int4_min")
ROWS = (1, 4, 16, 64)
ROUNDS = 31
UNCACHED_BYTES = 450_000_000

Results = dict[tuple[str, int], dict[str, float]]
"""Median seconds for one expert by implementation, for each (weight dtype, rows)."""


@dataclass(frozen=True)
class Experts:
    """Copies of one random expert: packed for the expert kernels, and as (gate_up, down) for torch."""

    shape: ExpertShape
    block: np.ndarray
    offsets: np.ndarray
    torch_weights: list[tuple[TorchMatrix, TorchMatrix]]

    @classmethod
    def random(cls, dtype: str) -> "Experts":
        """Random weights in a dtype."""
        shape = ExpertShape(HIDDEN_SIZE, INTERMEDIATE_SIZE, dtype, dtype)
        copies = -(-UNCACHED_BYTES // shape.nbytes)
        gate, up = (torch.randn(INTERMEDIATE_SIZE, HIDDEN_SIZE) / HIDDEN_SIZE**0.5 for _ in range(2))
        down = torch.randn(HIDDEN_SIZE, INTERMEDIATE_SIZE) / INTERMEDIATE_SIZE**0.5
        packed = pack_expert(shape, gate.numpy(), up.numpy(), down.numpy())
        gate_up = torch.cat((gate, up))
        return cls(
            shape=shape,
            block=np.tile(packed, copies),
            offsets=np.arange(copies) * shape.nbytes,
            torch_weights=[
                (TorchMatrix.of(dtype, gate_up), TorchMatrix.of(dtype, down)) for _ in range(copies)
            ],
        )

    def runs(self, rows: int) -> Runs:
        """All implementations, for random hidden states of `rows` rows."""
        hidden = torch.randn(rows, HIDDEN_SIZE)
        runs: Runs = {"read": self._read, "torch": self._torch(hidden)}
        for isa in available_isas():
            if isa != "numpy":
                runs[isa] = self._kernel(isa, hidden.numpy())
        return runs

    def _read(self, copy: int) -> object:
        start = self.offsets[copy]
        return read(self.block[start : start + self.shape.nbytes])

    def _torch(self, hidden: torch.Tensor) -> Callable[[int], object]:
        states = hidden if self.shape.gate_up_dtype == "f32" else hidden.bfloat16()

        def run(copy: int) -> object:
            gate_up, down = self.torch_weights[copy]
            gate, up = gate_up.times(states).chunk(2, dim=-1)
            return down.times(functional.silu(gate) * up)

        return run

    def _kernel(self, isa: str, hidden: np.ndarray) -> Callable[[int], object]:
        kernel = load_kernel(isa)
        states = hidden if self.shape.gate_up_dtype == "f32" else f32_to_bf16(hidden)
        weight = np.ones((len(hidden), 1), np.float32)

        def run(copy: int) -> object:
            index = np.full((len(hidden), 1), copy, np.int16)
            return kernel.gated_ffn(self.block, self.offsets, self.shape, states, index, weight)

        return run


def table_line(shape: ExpertShape, rows: int, name: str, times: dict[str, float]) -> str:
    """One line of the table: the time of one implementation, and its ratios to others in `times`."""
    seconds = times[name]
    flops = 6 * rows * shape.hidden_size * shape.intermediate_size
    gflops = f"{flops / seconds / 1e9:9.0f}" if name != "read" else " " * 9
    return (
        f"{shape.gate_up_dtype:9}{rows:4}  {name:9}{seconds * 1e3:9.3f}"
        f"{shape.nbytes / seconds / 1e9:8.1f}{gflops}"
        f"{times['read'] / seconds:9.0%}{times['torch'] / seconds:9.2f}"
    )


def judged_isa() -> str:
    """The fastest kernel with instructions that torch may use, too."""
    return "avx2" if torch.backends.cpu.get_cpu_capability() == "AVX2" else available_isas()[0]


def verdicts(results: Results) -> list[str]:
    """One line for each aim, with the value that was reached."""
    isa = judged_isa()
    aims = []
    for dtype, aim in (("bf16", 0.75), ("int8", 0.9), ("int4", 0.8), ("int4_min", 0.8)):
        times = results[dtype, 1]
        aims.append((f"{isa}, {dtype}, 1 row: share of the read speed", times["read"] / times[isa], aim))
    for dtype in ("bf16", "int8"):
        times = results[dtype, 64]
        aims.append((f"{isa}, {dtype}, 64 rows: speed over torch's", times["torch"] / times[isa], 1.0))
    return [
        f"{'met   ' if reached >= aim else 'MISSED'}  {what:50}{reached:6.2f}  (at least {aim:.2f})"
        for what, reached, aim in aims
    ]


def main() -> None:
    """Measure all dtypes and numbers of rows, and print a table."""
    if load_kernel().name == "numpy":
        raise SystemExit("there is no compiled kernel to measure: install a C compiler, then `make setup`")
    torch.set_num_threads(1)
    print(f"One expert of {HIDDEN_SIZE} x {INTERMEDIATE_SIZE}, one thread, medians of {ROUNDS} rounds")
    print(
        f"\n{'weights':9}{'rows':>4}  {'by':9}{'ms':>9}{'GB/s':>8}{'GFLOP/s':>9}{'of read':>9}{'x torch':>9}"
    )
    results: Results = {}
    for dtype in DTYPES:
        experts = Experts.random(dtype)
        for rows in ROWS:
            results[dtype, rows] = measure(experts.runs(rows), len(experts.offsets), ROUNDS)
            for name in results[dtype, rows]:
                print(table_line(experts.shape, rows, name, results[dtype, rows]))
            print()
    print("\n".join(verdicts(results)))
    linear.main()


if __name__ == "__main__":
    main()
