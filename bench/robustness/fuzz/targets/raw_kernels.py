"""The C functions of the kernels without the checks in Python: arguments that nearly fit, or not at all."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench.robustness.fuzz.support.target import Target
from bench.robustness.fuzz.targets.arguments import PAIRS, ROWS, SIZES, Arguments, target_of
from control_plane.engine.kernels import _dense, available_dense_isas
from functions.kernels import LinearShape, _gated_ffn, available_isas

_NAMES = {np.float32: "f32", np.uint16: "bf16"}
_EDGES = (2**24, 2**24 + 1, 2**31, 2**62, 2**63 - 1, 2**64, -(2**63))


@contextmanager
def raw_kernels(folder: Path) -> Iterator[Target]:
    """All C functions: up to two of a call's arguments are odd ones."""
    functions = {name: getattr(_dense, name) for name in ("linear", "attention", "rms_norm")}
    functions["gated_ffn"] = _gated_ffn.gated_ffn

    def call(arguments: Arguments) -> None:
        name = arguments.choice(list(functions))
        values = changed(arguments, list(_ARGUMENTS[name](arguments)), (0, 1, 1, 2))
        if arguments.random.random() < 0.02:
            del values[arguments.random.randrange(len(values))]
        functions[name](*values)

    # A C function refuses all odd layouts: with more of them, few calls would get any further.
    yield target_of(call, odd_layouts=0.02, faults=0.005)


def _gated_ffn_arguments(arguments: Arguments) -> Iterator[Any]:
    choice = arguments.choice
    dtype, hidden_dtype = choice(PAIRS)
    shape = arguments.expert_shape(choice(SIZES), choice(SIZES), dtype, choice(PAIRS)[0])
    rows, top_k, experts, hidden = choice(ROWS), choice((0, 1, 2)), choice((1, 3)), shape.hidden_size
    name = _NAMES[hidden_dtype]
    yield from (choice(available_isas()), shape.as_arguments(), name, name)
    yield from (rows, top_k, arguments.threads())
    yield arguments.array((experts * shape.nbytes,), np.uint8)
    yield np.arange(experts, dtype=np.int64) * shape.nbytes
    yield arguments.array((rows, hidden), hidden_dtype)
    yield arguments.indices((rows, top_k), np.int16, experts)
    yield arguments.array((rows, top_k), np.float32)
    yield choice((None, arguments.array((rows, hidden), np.float32)))
    yield arguments.array((rows, hidden), hidden_dtype)


def _linear_arguments(arguments: Arguments) -> Iterator[Any]:
    choice = arguments.choice
    dtype, x_dtype = choice(PAIRS)
    inputs, rows = choice(SIZES), choice(ROWS)
    shapes = [LinearShape(choice(SIZES), inputs, dtype) for _ in range(choice((1, 2, 8, 9)))]
    yield from (choice(available_dense_isas()), dtype, _NAMES[x_dtype], rows, inputs, arguments.threads())
    yield arguments.array((rows, inputs), x_dtype)
    yield tuple(
        (
            choice((shape.outputs, shape.outputs, shape.outputs, 2**24, 2**40, -1)),
            arguments.array((shape.nbytes,), np.uint8),
            choice((None, arguments.array((shape.outputs,), np.float32))),
            arguments.array((rows, shape.outputs), x_dtype),
        )
        for shape in shapes
    )


def _attention_arguments(arguments: Arguments) -> Iterator[Any]:
    choice = arguments.choice
    dtype = choice((np.float32, np.uint16))
    lanes, layers, kv_heads, tokens, head_dim = choice((1, 3)), 2, 2, choice((1, 5)), choice((2, 16, 34))
    rows, heads, count = choice(ROWS), kv_heads * choice((1, 3)), choice(ROWS)
    yield from (choice(available_dense_isas()), _NAMES[dtype], lanes, layers, kv_heads, tokens, head_dim)
    yield from (choice((0, 1, 2, -1)), rows, heads, tokens, 0.5, arguments.threads())
    yield arguments.array((lanes, layers, 2, kv_heads, tokens, head_dim), dtype)
    yield arguments.array((rows, heads, head_dim), dtype)
    yield from (arguments.array((rows, kv_heads, head_dim), dtype) for _ in range(2))
    yield from (arguments.array((rows, head_dim), dtype) for _ in range(2))
    yield arguments.indices((rows,), np.int64, lanes)
    yield arguments.indices((rows,), np.int64, tokens)
    yield arguments.indices((count,), np.int64, rows)
    yield arguments.array((count, heads, head_dim), dtype)


def _rms_norm_arguments(arguments: Arguments) -> Iterator[Any]:
    choice = arguments.choice
    dtype, rows, size = choice((np.float32, np.uint16)), choice(ROWS), choice(SIZES)
    yield from (choice(available_dense_isas()), _NAMES[dtype], rows, size, 1e-6)
    yield arguments.array((rows, size), dtype)
    yield arguments.array((size,), dtype)
    yield arguments.array((rows, size), dtype)


_ARGUMENTS: dict[str, Callable[[Arguments], Iterator[Any]]] = {
    "gated_ffn": _gated_ffn_arguments,
    "linear": _linear_arguments,
    "attention": _attention_arguments,
    "rms_norm": _rms_norm_arguments,
}


def changed(arguments: Arguments, values: list[Any], counts: Sequence[int]) -> list[Any]:
    """The values with one of `counts` of them odd ones; those of tuples, too."""
    for _ in range(arguments.choice(counts)):
        position = arguments.random.randrange(len(values))
        if isinstance(values[position], tuple) and values[position]:
            values[position] = tuple(changed(arguments, list(values[position]), counts))
        else:
            values[position] = odd(arguments, values[position])
    return values


def odd(arguments: Arguments, value: Any) -> Any:
    """A value in place of another: of the same type, or of any."""
    choice = arguments.choice
    if isinstance(value, int) and arguments.random.random() < 0.7:
        return choice(
            (0, -1, value + 1, value - 1, 2**24, 2**24 + 1, 2**31, 2**62, 2**63 - 1, 2**64, -(2**63))
        )
    if isinstance(value, np.ndarray) and arguments.random.random() < 0.7:
        return choice((value[:0], value.ravel()[:-1], np.concatenate([value.ravel()] * 2), value.tobytes()))
    return choice(
        (None, "", "f32", "int8", b"", bytearray(8), 0, 1.5, float("nan"), (), [], {}, object(), "x" * 1000)
    )
