"""The compute kernels through their Python interfaces: odd sizes, odd arrays, all instruction sets."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.robustness.fuzz.support.target import Misbehaviour, Target
from bench.robustness.fuzz.targets.arguments import PAIRS, ROWS, SIZES, Arguments, target_of
from control_plane.engine.kernels import LinearLayer, Scores, available_dense_isas, load_dense_kernel
from functions.kernels import LinearShape, available_isas, load_kernel


@contextmanager
def gated_ffn(folder: Path) -> Iterator[Target]:
    """The gated FFN of experts, with every instruction set."""

    def call(arguments: Arguments) -> None:
        choice = arguments.choice
        dtype, hidden_dtype = choice(PAIRS)
        shape = arguments.expert_shape(choice(SIZES), choice(SIZES), dtype, choice(PAIRS)[0])
        rows, top_k, experts = choice(ROWS), choice((0, 1, 2, 5)), choice((0, 1, 3, 9))
        first = choice((0, 0, 1, 2, 3, 64))
        offsets = first + np.arange(experts, dtype=np.int64) * shape.nbytes
        if experts and arguments.is_wrong():
            offsets[-1] = choice((-1, -(2**63), 2**63 - 1, offsets[-1] + 1, 2**62))
        hidden_states = arguments.array((rows, shape.hidden_size), hidden_dtype)
        output = load_kernel(choice(available_isas())).gated_ffn(
            arguments.array((first + experts * shape.nbytes,), np.uint8),
            offsets,
            shape,
            hidden_states,
            arguments.indices((rows, top_k), np.int16, experts),
            arguments.array((rows, top_k), np.float32),
            threads=arguments.threads(),
            carry=choice((None, arguments.array((rows, shape.hidden_size), np.float32))),
            partial=choice((False, True)),
        )
        _check(output, hidden_states.shape)

    yield target_of(call)


@contextmanager
def dense(folder: Path) -> Iterator[Target]:
    """Linear layers, attention and norms, with every instruction set."""
    yield target_of(lambda arguments: arguments.choice((_linear, _attention, _rms_norm))(arguments))


def _linear(arguments: Arguments) -> None:
    choice = arguments.choice
    dtype, x_dtype = choice(PAIRS)
    inputs, rows = choice(SIZES), choice(ROWS)
    shapes = [LinearShape(choice(SIZES), inputs, dtype) for _ in range(choice((1, 1, 2, 8, 9)))]
    layers = [
        LinearLayer(
            shape,
            arguments.array((shape.nbytes,), np.uint8),
            choice((None, arguments.array((shape.outputs,), np.float32))),
        )
        for shape in shapes
    ]
    kernel = load_dense_kernel(choice(available_dense_isas()))
    x = arguments.array((rows, inputs), x_dtype)
    for output, shape in zip(kernel.linear(layers, x, threads=arguments.threads()), shapes, strict=True):
        _check(output, (len(x), shape.outputs))


def _attention(arguments: Arguments) -> None:
    choice = arguments.choice
    dtype = choice((np.float32, np.uint16))
    lanes, kv_heads, tokens = choice((1, 3)), choice((1, 2)), choice((1, 5, 33))
    key_size, value_size = choice((1, 2, 6, 16, 34, 64)), choice((1, 2, 6, 16, 34, 64))
    rows, heads = choice(ROWS), kv_heads * choice((1, 1, 3, 9, 40)) + choice((0, 0, 0, 0, 1))
    keys = arguments.array((lanes, kv_heads, tokens, key_size), dtype)
    values_in_keys = value_size <= key_size and choice((False, True))
    values = (
        keys[..., :value_size] if values_in_keys else arguments.array((*keys.shape[:3], value_size), dtype)
    )
    query = arguments.array((rows, heads, key_size), dtype)
    scores = Scores(
        choice((0.1, 0.0, float("nan"), 1e38)),
        choice((None, None, 1, 3, 1000, 0, -1)),
        choice((None, None, 30.0, 1e-3, -1.0, float("nan"))),
        choice((None, arguments.array((heads,), np.float32))),
    )
    output = load_dense_kernel(choice(available_dense_isas())).attention(
        (keys, values),
        query,
        arguments.array((rows, kv_heads, key_size), dtype),
        None if values_in_keys else arguments.array((rows, kv_heads, value_size), dtype),
        arguments.indices((rows,), np.int64, lanes),
        arguments.indices((rows,), np.int64, tokens),
        scores,
        threads=arguments.threads(),
    )
    _check(output, (*query.shape[:2], values.shape[3]))


def _rms_norm(arguments: Arguments) -> None:
    choice = arguments.choice
    dtype, rows, size = choice((np.float32, np.uint16)), choice(ROWS), choice(SIZES)
    x, weight = arguments.array((rows, size), dtype), arguments.array((size,), dtype)
    kernel = load_dense_kernel(choice(available_dense_isas()))
    _check(kernel.rms_norm(x, weight, choice((1e-6, 0.0, -1.0, float("nan")))), x.shape)


def _check(output: NDArray[Any], shape: tuple[int, ...]) -> None:
    if output.shape != shape:
        raise Misbehaviour(f"{output.shape}, not {shape}")
