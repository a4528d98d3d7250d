"""How compressed-tensors (pack-quantized), AWQ and GPTQ pack integers into numbers of 32 bits.

- compressed-tensors: the codes of a row follow each other; zeros, those of a column. Both are unsigned here,
  and half of their range above what they stand for.
- AWQ ("gemm"): the matrix is transposed [K, N], and the codes of eight outputs share a number, in an order of
  their own. So are the zeros.
- GPTQ: the matrix is transposed, and the codes of inputs that follow each other share a number; zeros, those
  of outputs. Version 1 stores zeros less one. `g_idx` has the group of each input, if these are not in order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from control_plane.errors import PartitionError
from control_plane.partition.checkpoint.quantised.integers import Codes, IntegerTensor, ReadCodes
from control_plane.partition.checkpoint.quantised.parts import (
    SCALES,
    Parts,
    check_matrix,
    misfit,
    numbers,
    stored_columns,
    stored_rows,
)
from control_plane.partition.checkpoint.tensors.safetensors_file import StoredTensor

_AWQ_PLACES = np.array([0, 4, 1, 5, 2, 6, 3, 7])
"""Where in a number of 32 bits AWQ has the code of each of eight outputs."""
BITS = (4, 8)
"""The bits of codes that can be read."""


def pack_quantised(name: str, dtype: str, module: str, parts: Parts) -> IntegerTensor:
    """The matrix of a module in compressed-tensors' format pack-quantized. Raises PartitionError."""
    size = parts.take(f"{module}.weight_shape", ("I64", "I32"), (2,))
    shape = tuple(int(length) for length in size.read_stored(0, 2))
    packed = parts.take(f"{module}.weight_packed", ("I32",))
    check_matrix(packed)
    bits = next((bits for bits in BITS if packed.shape == (shape[0], _words(shape[1], bits))), None)
    if bits is None:
        raise misfit(packed, f"{list(shape)} codes of 4 or 8 bits")
    scales = parts.take(f"{module}.weight_scale", SCALES)
    groups = _groups(scales, scales.shape[-1] if len(scales.shape) == 2 else 0, shape[1])
    if scales.shape[0] != shape[0]:
        raise misfit(scales, f"the scales of {shape[0]} rows")
    zeros = None
    if parts.find(zero_name := f"{module}.weight_zero_point"):
        stored = parts.take(zero_name, ("I32",), (_words(shape[0], bits), groups))
        zeros = _packed_columns(stored, bits)
    return IntegerTensor(
        name,
        packed.path,
        dtype,
        (shape[0], shape[1]),
        bits,
        lambda first, count: _unpacked(stored_rows(packed, first, count), bits)[:, : shape[1]],
        lambda first, count: numbers(scales, stored_rows(scales, first, count)),
        zeros,
        groups,
        zeros is None,
        _order(f"{module}.weight_g_idx", parts, shape[1], groups),
    )


def awq(name: str, dtype: str, module: str, parts: Parts) -> IntegerTensor:
    """The matrix of a module of an AWQ checkpoint, version "gemm". Raises PartitionError."""
    packed = parts.take(f"{module}.qweight", ("I32",))
    check_matrix(packed)
    inputs, outputs = packed.shape[0], 8 * packed.shape[1]
    scales = parts.take(f"{module}.scales", SCALES)
    groups = _groups(scales, scales.shape[0] if len(scales.shape) == 2 else 0, inputs)
    if scales.shape[1] != outputs:
        raise misfit(scales, f"the scales of {outputs} outputs")
    zeros = parts.take(f"{module}.qzeros", ("I32",), (groups, packed.shape[1]))
    return IntegerTensor(
        name,
        packed.path,
        dtype,
        (outputs, inputs),
        4,
        lambda first, count: _awq_outputs(packed, first, count),
        lambda first, count: numbers(scales, stored_columns(scales, first, count)).T,
        lambda first, count: _awq_outputs(zeros, first, count),
        groups,
        is_symmetric=False,
        order=lambda: None,
    )


@dataclass(frozen=True)
class GptqVariant:
    """What config.json says of the weights of a GPTQ checkpoint."""

    bits: int
    is_symmetric: bool
    zero_offset: int
    """What is added to the stored zeros."""


def gptq(name: str, dtype: str, module: str, parts: Parts, variant: GptqVariant) -> IntegerTensor:
    """The matrix of a module of a GPTQ checkpoint of 4 or 8 bits. Raises PartitionError."""
    packed = parts.take(f"{module}.qweight", ("I32",))
    check_matrix(packed)
    bits, outputs = _gptq_bits(packed, module, parts, variant.bits), packed.shape[1]
    inputs = packed.shape[0] * 32 // bits
    scales = parts.take(f"{module}.scales", SCALES)
    groups = _groups(scales, scales.shape[0] if len(scales.shape) == 2 else 0, inputs)
    if scales.shape[1] != outputs:
        raise misfit(scales, f"the scales of {outputs} outputs")
    stored_zeros = parts.take(f"{module}.qzeros", ("I32",), (groups, _words(outputs, bits)))
    return IntegerTensor(
        name,
        packed.path,
        dtype,
        (outputs, inputs),
        bits,
        lambda first, count: _unpacked(np.ascontiguousarray(stored_columns(packed, first, count).T), bits),
        lambda first, count: numbers(scales, stored_columns(scales, first, count)).T,
        _gptq_zeros(stored_zeros, bits, variant.zero_offset),
        groups,
        variant.is_symmetric,
        _order(f"{module}.g_idx", parts, inputs, groups),
    )


def _gptq_bits(packed: StoredTensor, module: str, parts: Parts, stated: int) -> int:
    """The bits of a module's codes: `g_idx` shows the number of inputs, so others than stated are seen."""
    order = parts.left.get(f"{module}.g_idx")
    if order is None or not order.size:
        return stated
    bits = packed.shape[0] * 32 // order.size
    if bits not in BITS:
        raise misfit(packed, f"{order.size} inputs of 4 or 8 bits")
    return bits


def _gptq_zeros(stored: StoredTensor, bits: int, offset: int) -> ReadCodes:
    """Reads the zeros [count, G] of rows, of [G, N * bits / 32]."""
    codes, mask = 32 // bits, np.uint8((1 << bits) - 1)

    def read(first: int, count: int) -> Codes:
        low, high = first // codes, -(-(first + count) // codes)
        words = np.ascontiguousarray(stored_columns(stored, low, high - low))
        zeros = _unpacked(words, bits).T[first - low * codes :][:count]
        return zeros + np.uint8(offset) & mask

    return read


def _words(count: int, bits: int) -> int:
    """The numbers of 32 bits that hold as many codes."""
    return -(-count * bits // 32)


def _unpacked(words: NDArray[Any], bits: int) -> Codes:
    """The codes in rows of numbers, of which the first is in the lowest bits."""
    stored = words.view(np.uint8)
    if bits == 8:
        return stored
    return np.stack([stored & 15, stored >> 4], axis=2).reshape(len(stored), -1)


def _packed_columns(stored: StoredTensor, bits: int) -> ReadCodes:
    """Reads rows [count, G] of codes that are packed by columns, [N * bits / 32, G]."""
    codes = 32 // bits

    def read(first: int, count: int) -> Codes:
        low, high = first // codes, -(-(first + count) // codes)
        words = np.ascontiguousarray(stored_rows(stored, low, high - low).T)
        return _unpacked(words, bits).T[first - low * codes :][:count]

    return read


def _awq_outputs(stored: StoredTensor, first: int, count: int) -> Codes:
    """Rows [count, K] of a transposed matrix in AWQ's order, [K, N / 8]."""
    low, high = first // 8, -(-(first + count) // 8)
    words = np.ascontiguousarray(stored_columns(stored, low, high - low))
    codes = _unpacked(words, 4).reshape(len(words), -1, 8)[:, :, _AWQ_PLACES].reshape(len(words), -1)
    return codes.T[first - 8 * low :][:count]


def _groups(scales: StoredTensor, groups: int, inputs: int) -> int:
    """The number of groups of inputs. Raises PartitionError if there can be no such groups."""
    if not 1 <= groups <= inputs or -(-inputs // -(-inputs // groups)) != groups:
        raise misfit(scales, f"scales of groups of {inputs} inputs")
    return groups


def _order(name: str, parts: Parts, inputs: int, groups: int) -> Callable[[], NDArray[np.int64] | None]:
    """Reads the group of each input, from the tensor of that name if there is one."""
    if not parts.find(name):
        return lambda: None
    tensor = parts.take(name, ("I32", "I64"), (inputs,))

    def read() -> NDArray[np.int64] | None:
        order = tensor.read_stored(0, inputs).astype(np.int64)
        if order.min() < 0 or order.max() >= groups:
            raise PartitionError(f"{tensor.path}: {name} has groups that are not from 0 to {groups - 1}")
        in_order = np.arange(inputs) // -(-inputs // groups)
        return None if np.array_equal(order, in_order) else order

    return read
