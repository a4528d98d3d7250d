"""Compares attention over long prompts with torch's fused attention: `python -m bench.micro.attention`.

The sizes are those of a layer of Qwen1.5-MoE-A2.7B, in bfloat16, on one thread. "ours" is a layer program of
few inputs and outputs, less the time that it takes for as many rows that see one token each.
"""

import time
from collections.abc import Callable
from statistics import median

import click
import numpy as np
import torch
from numpy.typing import NDArray

from control_plane.engine.kernels import LinearLayer
from control_plane.engine.kernels.c_dense import compiled_isas
from control_plane.engine.kernels.layer_parts import LayerShape, LayerWeights
from control_plane.engine.kernels.layer_program import BatchRows, LayerProgram
from functions.kernels.bfloat16 import f32_to_bf16
from functions.kernels.packed_matrix import LinearShape, pack_matrix

HEADS, HEAD_DIM, HIDDEN = 16, 128, 32
ISAS = compiled_isas()


def normal(*shape: int, scale: float = 1.0) -> NDArray[np.uint16]:
    return f32_to_bf16(np.random.default_rng(0).standard_normal(shape, np.float32) * np.float32(scale))


def linear(outputs: int, inputs: int) -> LinearLayer:
    shape = LinearShape(outputs, inputs, "bf16")
    return LinearLayer(shape, pack_matrix(shape, normal(outputs, inputs, scale=inputs**-0.5)))


def program(isa: str) -> LayerProgram:
    """A layer without experts, of random weights."""
    size, norm = HEADS * HEAD_DIM, normal(HIDDEN)
    query, key, value = (linear(size, HIDDEN) for _ in range(3))
    weights = LayerWeights(query, key, value, linear(HIDDEN, size), norm, ffn_norm=norm)
    return LayerProgram(isa, LayerShape(HIDDEN, HEADS, HEADS, HEAD_DIM, epsilon=1e-6), weights, "bf16")


def ours(isa: str, positions: NDArray[np.int64]) -> Callable[[], object]:
    """A call of a layer program for rows of one sequence at these positions."""
    rows, layer = len(positions), program(isa)
    cache = normal(1, 1, 2, HEADS, int(positions[-1]) + 1, HEAD_DIM)
    batch = BatchRows(np.zeros(rows, np.int64), positions, normal(rows, HEAD_DIM), normal(rows, HEAD_DIM))
    hidden = normal(rows, HIDDEN)
    return lambda: layer.begin(cache, 0, hidden.copy(), batch, threads=1)


def torchs(rows: int) -> Callable[[], object]:
    """torch's attention of a prompt of as many rows."""
    query, key, value = (torch.randn(1, HEADS, rows, HEAD_DIM, dtype=torch.bfloat16) for _ in range(3))
    attention = torch.nn.functional.scaled_dot_product_attention
    return lambda: attention(query, key, value, is_causal=True)


def milliseconds(run: Callable[[], object]) -> float:
    """The time of the thread, which others on the machine disturb less than that of the clock."""
    started = time.thread_time()
    run()
    return (time.thread_time() - started) * 1e3


@click.command()
@click.option("--isa", type=click.Choice(ISAS), default=ISAS[0], show_default=True)
@click.option("--rows", type=click.IntRange(1), default=512, show_default=True, help="Of one prompt.")
@click.option("--rounds", type=click.IntRange(1), default=15, show_default=True, help="In turns.")
def main(isa: str, rows: int, rounds: int) -> None:
    """Print medians and minima of both."""
    torch.set_num_threads(1)
    runs = ours(isa, np.arange(rows)), ours(isa, np.zeros(rows, np.int64)), torchs(rows)
    times = [[milliseconds(run) for run in runs] for _ in range(rounds + 1)][1:]
    for name, figures in (
        (f"ours, {isa}", [attending - rest for attending, rest, _ in times]),
        ("torch", [theirs for *_, theirs in times]),
    ):
        click.echo(f"{name:14} median {median(figures):7.2f} ms, least {min(figures):7.2f} ms")


if __name__ == "__main__":
    main()
