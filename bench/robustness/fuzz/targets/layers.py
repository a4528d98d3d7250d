"""The layer programs' C functions without the checks in Python: arguments that nearly fit, or not at all."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench.robustness.fuzz.support.target import Target
from bench.robustness.fuzz.targets.arguments import PAIRS, ROWS, Arguments, target_of
from bench.robustness.fuzz.targets.raw_kernels import changed
from control_plane.engine.kernels import _dense, available_dense_isas
from functions.kernels import LinearShape

ODD = (0, 0, 1, 2)
"""How many arguments are odd ones."""
HIDDEN, HEADS, KV_HEADS, HEAD_DIM, EXPERTS, TOP_K, TOKENS = 24, 4, 2, 6, 6, 2, 7


@contextmanager
def layers(folder: Path) -> Iterator[Target]:
    """A program of a layer, and calls of it: up to two of their arguments are odd ones."""

    def call(arguments: Arguments) -> None:
        dtype, rows_dtype = arguments.choice(PAIRS)
        values = changed(arguments, list(_program(arguments, dtype, rows_dtype)), ODD)
        program = _dense.layer_program(*values)
        name = arguments.choice(list(_CALLS))
        values = changed(arguments, list(_CALLS[name](arguments, rows_dtype)), ODD)
        getattr(_dense, name)(program, *values)

    yield target_of(call, odd_layouts=0.02, faults=0.005)


def _program(arguments: Arguments, dtype: str, rows_dtype: type) -> Iterator[Any]:
    queries, keys = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    plain = "f32" if rows_dtype is np.float32 else "bf16"

    def matrix(outputs: int, inputs: int, of: str) -> tuple[Any, ...]:
        bias = arguments.choice((None, arguments.array((outputs,), np.float32)))
        nbytes = LinearShape(outputs, inputs, of).nbytes
        return of, outputs, inputs, arguments.array((nbytes,), np.uint8), bias

    yield from (arguments.choice(available_dense_isas()[:-1]), plain)
    window, rotated = arguments.choice((1, 3, TOKENS)), arguments.choice((HEAD_DIM, HEAD_DIM, 2, 0))
    yield HIDDEN, HEADS, KV_HEADS, HEAD_DIM, window, rotated
    yield 1e-6, 0.5, 3.0, arguments.choice((1.0, 0.3))
    gate = arguments.choice(("sigmoid", "softplus"))
    yield True, arguments.choice((True, False)), arguments.choice((True, False)), gate
    scores = arguments.choice(("softmax", "sigmoid", "sigmoid_of_chosen"))
    correction = arguments.choice((None, arguments.array((EXPERTS,), np.float32)))
    yield TOP_K, *arguments.choice(((1, 1), (3, 2), (3, 3))), scores, True, 0.7, correction
    sizes = [*[HIDDEN] * 4, HEAD_DIM, HEAD_DIM]
    yield tuple(arguments.choice((None, arguments.array((size,), rows_dtype))) for size in sizes)
    yield (
        matrix(queries, HIDDEN, dtype),
        matrix(keys, HIDDEN, dtype),
        matrix(keys, HIDDEN, dtype),
        arguments.choice((None, matrix(HEADS, HIDDEN, dtype), matrix(queries, HIDDEN, dtype))),
        matrix(HIDDEN, queries, dtype),
        arguments.choice((None, matrix(EXPERTS, HIDDEN, arguments.choice((plain, "f32"))))),
    )
    shape = arguments.expert_shape(HIDDEN, 20, dtype, dtype)
    packed, gate = arguments.array((shape.nbytes,), np.uint8), arguments.array((HIDDEN,), rows_dtype)
    yield arguments.choice((None, (shape.as_arguments(), packed, gate)))


def _begin(arguments: Arguments, dtype: type) -> Iterator[Any]:
    rows, lanes = arguments.choice(ROWS), arguments.choice((1, 3))
    yield from (arguments.choice((0, 1, 2, -1)), arguments.threads(), (lanes, 2, KV_HEADS, TOKENS, HEAD_DIM))
    yield arguments.array((lanes, 2, 2, KV_HEADS, TOKENS, HEAD_DIM), dtype)
    yield arguments.array((rows, HIDDEN), dtype)
    yield from (arguments.array((rows, HEAD_DIM), dtype) for _ in range(2))
    yield arguments.indices((rows,), np.int64, lanes)
    yield arguments.indices((rows,), np.int64, TOKENS)
    yield arguments.array((rows, HIDDEN), dtype)
    yield np.empty((rows, arguments.choice((0, TOP_K))), np.int64)
    yield np.empty((rows, arguments.choice((0, TOP_K))), np.float32)


def _shared(arguments: Arguments, dtype: type) -> Iterator[Any]:
    rows = arguments.choice(ROWS)
    yield from (arguments.threads(), rows)
    yield from (arguments.array((rows, HIDDEN), dtype) for _ in range(2))


def _end(arguments: Arguments, dtype: type) -> Iterator[Any]:
    rows = arguments.choice(ROWS)
    routed = arguments.choice((np.float32, dtype))
    yield arguments.array((rows, HIDDEN), dtype)
    yield "f32" if routed is np.float32 else "bf16"
    yield arguments.choice((None, arguments.array((rows, HIDDEN), routed)))
    yield arguments.choice((None, arguments.array((rows, HIDDEN), dtype)))


_CALLS: dict[str, Callable[[Arguments, type], Iterator[Any]]] = {
    "layer_begin": _begin,
    "layer_shared": _shared,
    "layer_end": _end,
}
