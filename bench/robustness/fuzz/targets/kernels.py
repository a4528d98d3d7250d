"""The compute kernels: odd sizes and arrays through their Python interfaces, anything at all to C functions.

An input is the seed of a random generator that chooses the arguments.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.robustness.fuzz.target import Misbehaviour, Target
from control_plane.engine.kernels import LinearLayer, _dense, available_dense_isas, load_dense_kernel
from functions.kernels import ExpertShape, LinearShape, _gated_ffn, available_isas, load_kernel

_SIZES = (1, 2, 3, 4, 7, 15, 16, 17, 31, 32, 33, 64, 65, 127, 128, 129, 130)
_ROWS = (0, 1, 2, 5, 6, 7, 8, 9, 17)
_PAIRS = (("f32", np.float32), ("bf16", np.uint16), ("int8", np.float32), ("int8", np.uint16))
_DTYPES: Sequence[Any] = (np.float32, np.uint16, np.uint8, np.int16, np.int64, np.float64, ">f4", bool)
_REFUSALS = (ValueError, TypeError, BufferError, MemoryError, OverflowError)
_FAULTS = 0.15
"""The share of arrays that get a wrong dtype, size or order."""


class _Arguments:
    """Random arguments of a call, in part wrong ones."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self._numbers = np.random.default_rng(random.getrandbits(64))

    def choice(self, values: Sequence[Any]) -> Any:
        return self.random.choice(values)

    def threads(self) -> int:
        return int(
            self.choice((1, 1, 2, 64, 0, 65, -1)) if self.random.random() < 0.1 else self.choice((1, 2))
        )

    def array(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """An array of random bits, so that floats may be NaN or huge; its memory is often laid out oddly."""
        if self.random.random() < _FAULTS / 3:
            shape = tuple(max(0, size + self.choice((-1, 0, 1))) for size in shape)
        if self.random.random() < _FAULTS / 3:
            dtype = self.choice(_DTYPES)
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self._laid_out(self._numbers.bytes(size), shape, np.dtype(dtype))

    def indices(self, shape: tuple[int, ...], dtype: Any, end: int) -> NDArray[Any]:
        """Indices from 0 to `end`, among them a few out of range."""
        values = self._numbers.integers(0, max(1, end), shape)
        if values.size and self.random.random() < _FAULTS:
            values.flat[self.random.randrange(values.size)] = self.choice(
                (-1, -2, end, end + 1, 32767, -32768)
            )
        return self._laid_out(values.astype(dtype).tobytes(), shape, np.dtype(dtype))

    def _laid_out(self, data: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """The array contiguous, or not aligned, or with strides, or in another order."""
        kind = self.random.randrange(6)
        # A byte before the data, so that it begins at an odd address.
        shift = int(kind == 0)
        array = np.frombuffer(bytearray(shift) + bytearray(data), np.uint8)[shift:].view(dtype).reshape(shape)
        if kind == 1 and array.ndim > 1:
            return np.asfortranarray(array)
        if kind == 2 and array.ndim:
            return np.repeat(array, 2, axis=-1)[..., ::2]
        return array


@contextmanager
def gated_ffn(folder: Path) -> Iterator[Target]:
    """The gated FFN of experts, with every instruction set."""

    def call(arguments: _Arguments) -> None:
        choice = arguments.choice
        dtype, hidden_dtype = choice(_PAIRS)
        shape = ExpertShape(choice(_SIZES), choice(_SIZES), dtype)
        rows, top_k, experts = choice(_ROWS), choice((0, 1, 2, 5)), choice((0, 1, 3, 9))
        first = choice((0, 0, 1, 2, 3, 64))
        offsets = first + np.arange(experts, dtype=np.int64) * shape.nbytes
        if experts and arguments.random.random() < _FAULTS:
            offsets[-1] = choice((-1, -(2**63), 2**63 - 1, offsets[-1] + 1, 2**62))
        output = load_kernel(choice(available_isas())).gated_ffn(
            arguments.array((first + experts * shape.nbytes,), np.uint8),
            offsets,
            shape,
            arguments.array((rows, shape.hidden_size), hidden_dtype),
            arguments.indices((rows, top_k), np.int16, experts),
            arguments.array((rows, top_k), np.float32),
            threads=arguments.threads(),
            carry=choice((None, arguments.array((rows, shape.hidden_size), np.float32))),
            partial=choice((False, True)),
        )
        _check(output, (rows, shape.hidden_size))

    yield _target(call)


@contextmanager
def dense(folder: Path) -> Iterator[Target]:
    """Linear layers, attention and norms, with every instruction set."""
    yield _target(lambda arguments: arguments.choice((_linear, _attention, _rms_norm))(arguments))


def _linear(arguments: _Arguments) -> None:
    choice = arguments.choice
    dtype, x_dtype = choice(_PAIRS)
    inputs, rows = choice(_SIZES), choice(_ROWS)
    shapes = [LinearShape(choice(_SIZES), inputs, dtype) for _ in range(choice((1, 1, 2, 8, 9)))]
    layers = [
        LinearLayer(
            shape,
            arguments.array((shape.nbytes,), np.uint8),
            choice((None, arguments.array((shape.outputs,), np.float32))),
        )
        for shape in shapes
    ]
    kernel = load_dense_kernel(choice(available_dense_isas()))
    outputs = kernel.linear(layers, arguments.array((rows, inputs), x_dtype), threads=arguments.threads())
    for output, shape in zip(outputs, shapes, strict=True):
        _check(output, (rows, shape.outputs))


def _attention(arguments: _Arguments) -> None:
    choice = arguments.choice
    dtype = choice((np.float32, np.uint16))
    lanes, layers, kv_heads, tokens = choice((1, 3)), choice((1, 2)), choice((1, 2)), choice((1, 5, 33))
    head_dim, rows, heads = choice((1, 2, 6, 16, 34, 64)), choice(_ROWS), kv_heads * choice((1, 1, 3, 9))
    count = choice(_ROWS)
    output = load_dense_kernel(choice(available_dense_isas())).attention(
        arguments.array((lanes, layers, 2, kv_heads, tokens, head_dim), dtype),
        choice((0, layers - 1, layers - 1, layers, -1)),
        arguments.array((rows, heads + choice((0, 0, 0, 0, 1)), head_dim), dtype),
        arguments.array((rows, kv_heads, head_dim), dtype),
        arguments.array((rows, kv_heads, head_dim), dtype),
        (arguments.array((rows, head_dim), dtype), arguments.array((rows, head_dim), dtype)),
        arguments.indices((rows,), np.int64, lanes),
        arguments.indices((rows,), np.int64, tokens),
        arguments.indices((count,), np.int64, rows),
        scaling=choice((0.1, 0.0, float("nan"), 1e38)),
        window=choice((None, None, 1, 3, 1000, 0, -1)),
        threads=arguments.threads(),
    )
    _check(output, (count, *output.shape[1:]))


def _rms_norm(arguments: _Arguments) -> None:
    choice = arguments.choice
    dtype, rows, size = choice((np.float32, np.uint16)), choice(_ROWS), choice(_SIZES)
    kernel = load_dense_kernel(choice(available_dense_isas()))
    output = kernel.rms_norm(
        arguments.array((rows, size), dtype),
        arguments.array((size,), dtype),
        choice((1e-6, 0.0, -1.0, float("nan"))),
    )
    _check(output, (rows, size))


@contextmanager
def raw(folder: Path) -> Iterator[Target]:
    """The C functions without the checks in Python: arguments that nearly fit, or do not fit at all."""
    functions = {name: getattr(_dense, name) for name in ("linear", "attention", "rms_norm")}
    functions["gated_ffn"] = _gated_ffn.gated_ffn

    def call(arguments: _Arguments) -> None:
        name = arguments.choice(list(functions))
        values = list(_RAW_ARGUMENTS[name](arguments))
        for _ in range(arguments.choice((0, 1, 1, 2))):
            position = arguments.random.randrange(len(values))
            values[position] = _odd(arguments, values[position])
        if arguments.random.random() < 0.02:
            del values[arguments.random.randrange(len(values))]
        functions[name](*values)

    yield _target(call)


def _raw_gated_ffn(arguments: _Arguments) -> Iterator[Any]:
    choice = arguments.choice
    dtype, hidden_dtype = choice(_PAIRS)
    shape = ExpertShape(choice(_SIZES), choice(_SIZES), dtype)
    rows, top_k, experts, hidden = choice(_ROWS), choice((0, 1, 2)), choice((1, 3)), shape.hidden_size
    name = _NAMES[hidden_dtype]
    yield from (choice(available_isas()), dtype, name, name)
    yield from (rows, top_k, hidden, shape.intermediate_size, arguments.threads())
    yield arguments.array((experts * shape.nbytes,), np.uint8)
    yield np.arange(experts, dtype=np.int64) * shape.nbytes
    yield arguments.array((rows, hidden), hidden_dtype)
    yield arguments.indices((rows, top_k), np.int16, experts)
    yield arguments.array((rows, top_k), np.float32)
    yield choice((None, arguments.array((rows, hidden), np.float32)))
    yield arguments.array((rows, hidden), hidden_dtype)


def _raw_linear(arguments: _Arguments) -> Iterator[Any]:
    choice = arguments.choice
    dtype, x_dtype = choice(_PAIRS)
    inputs, rows = choice(_SIZES), choice(_ROWS)
    shapes = [LinearShape(choice(_SIZES), inputs, dtype) for _ in range(choice((1, 2, 8, 9)))]
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


def _raw_attention(arguments: _Arguments) -> Iterator[Any]:
    choice = arguments.choice
    dtype = choice((np.float32, np.uint16))
    lanes, layers, kv_heads, tokens, head_dim = choice((1, 3)), 2, 2, choice((1, 5)), choice((2, 16, 34))
    rows, heads, count = choice(_ROWS), kv_heads * choice((1, 3)), choice(_ROWS)
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


def _raw_rms_norm(arguments: _Arguments) -> Iterator[Any]:
    choice = arguments.choice
    dtype, rows, size = choice((np.float32, np.uint16)), choice(_ROWS), choice(_SIZES)
    yield from (choice(available_dense_isas()), _NAMES[dtype], rows, size, 1e-6)
    yield arguments.array((rows, size), dtype)
    yield arguments.array((size,), dtype)
    yield arguments.array((rows, size), dtype)


_NAMES = {np.float32: "f32", np.uint16: "bf16"}
_RAW_ARGUMENTS: dict[str, Callable[[_Arguments], Iterator[Any]]] = {
    "gated_ffn": _raw_gated_ffn,
    "linear": _raw_linear,
    "attention": _raw_attention,
    "rms_norm": _raw_rms_norm,
}


def _odd(arguments: _Arguments, value: Any) -> Any:
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


def _target(call: Callable[[_Arguments], None]) -> Target:
    def run(data: bytes) -> bool:
        try:
            with np.errstate(all="ignore"):
                call(_Arguments(Random(data)))
        except _REFUSALS:
            return False
        return True

    return Target(lambda random: random.randbytes(8), run)


def _check(output: NDArray[Any], shape: tuple[int, ...]) -> None:
    if output.shape != shape:
        raise Misbehaviour(f"{output.shape}, not {shape}")
