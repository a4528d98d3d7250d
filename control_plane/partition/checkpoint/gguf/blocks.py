"""The types of GGUF's tensors: the bytes of their blocks, and the numbers that these hold.

Each type of a quantised tensor divides a row into blocks of 32 or 256 values. A block's values are integers
in groups, with a scale and maybe a minimum for each: value = scale * integer - minimum. The layouts are those
of ggml's `ggml-common.h`.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from functions.kernels.bfloat16 import Float32, f32_to_bf16
from functions.kernels.packed_tiles import Quantised
from functions.kernels.packed_types import GROUP_VALUES, PACKED_TYPES

Bytes = NDArray[np.uint8]
_SUPER = 256
"""The values of a block of the types that end in K, and of IQ4_XS."""


class Groups(NamedTuple):
    """The numbers of blocks [n, bytes]."""

    integers: NDArray[np.int16]
    """[n, groups, values of a group]"""
    scales: Float32
    """[n, groups]"""
    minima: Float32 | None = None
    """[n, groups]"""

    def values(self) -> Float32:
        """The values [n, values of a block]."""
        values: Float32 = self.integers * self.scales[:, :, None]
        if self.minima is not None:
            values -= self.minima[:, :, None]
        return values.reshape(len(values), -1)


class BlockType(NamedTuple):
    """A type of quantised tensors."""

    name: str
    block_values: int
    block_nbytes: int
    groups: Callable[[Bytes], Groups]
    stored_type: str
    """The nearest type of packed weights."""
    carried: Callable[[Bytes], Quantised] | None = None
    """Brings blocks [rows, n, bytes] into the nearest type, if that holds them without loss."""


def _half(stored: Bytes) -> Float32:
    """Numbers of float16, [n, bytes] as [n, bytes / 2]."""
    return np.ascontiguousarray(stored).view(np.float16).astype(np.float32)


def _nibbles(stored: Bytes) -> Bytes:
    """The four bits of a block's values [..., bytes]: the low halves of all bytes, then the high ones."""
    return np.concatenate([stored & 15, stored >> 4], axis=-1)


def _bits(stored: Bytes, bits: int, run: int) -> Bytes:
    """Numbers of few bits [n, values]: of each run of bytes the lowest bits of all, then the next ones."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    runs = stored.reshape(len(stored), -1, 1, run) >> shifts & np.uint8((1 << bits) - 1)
    return runs.reshape(len(stored), -1)


def _fifth_bits(stored: Bytes) -> Bytes:
    """The fifth bits of 32 values, [n, 4 bytes] as [n, 32]."""
    return np.unpackbits(stored, axis=1, bitorder="little") << np.uint8(4)


def _one_group(integers: NDArray[np.integer], scales: Float32, minima: Float32 | None = None) -> Groups:
    return Groups(integers.astype(np.int16)[:, None, :], scales, minima)


def _q4_0(blocks: Bytes) -> Groups:
    return _one_group(_nibbles(blocks[:, 2:]).astype(np.int16) - 8, _half(blocks[:, :2]))


def _q4_1(blocks: Bytes) -> Groups:
    return _one_group(_nibbles(blocks[:, 4:]), _half(blocks[:, :2]), -_half(blocks[:, 2:4]))


def _q5_0(blocks: Bytes) -> Groups:
    integers = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return _one_group(integers.astype(np.int16) - 16, _half(blocks[:, :2]))


def _q5_1(blocks: Bytes) -> Groups:
    integers = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return _one_group(integers, _half(blocks[:, :2]), -_half(blocks[:, 2:4]))


def _q8_0(blocks: Bytes) -> Groups:
    return _one_group(blocks[:, 2:].view(np.int8), _half(blocks[:, :2]))


def _q2_k(blocks: Bytes) -> Groups:
    scales, units = blocks[:, :16], _half(blocks[:, 80:84])
    integers = _bits(blocks[:, 16:80], 2, 32).reshape(len(blocks), 16, 16)
    return Groups(integers.astype(np.int16), units[:, :1] * (scales & 15), units[:, 1:] * (scales >> 4))


def _q3_k(blocks: Bytes) -> Groups:
    high, stored = _bits(blocks[:, :32], 1, 32), blocks[:, 96:108]
    integers = (_bits(blocks[:, 32:96], 2, 32) | high << 2).astype(np.int16) - 4
    low_bits = np.concatenate([stored[:, :8] & 15, stored[:, :8] >> 4], axis=1)
    scales = (low_bits | _bits(stored[:, 8:], 2, 4) << 4).astype(np.int16) - 32
    return Groups(integers.reshape(len(blocks), 16, 16), _half(blocks[:, 108:]) * scales)


def _scales_of_k(stored: Bytes) -> tuple[Bytes, Bytes]:
    """The eight scales and eight minima, of six bits, in 12 bytes [n, 12]."""
    low, middle, high = stored[:, :4], stored[:, 4:8], stored[:, 8:]
    scales = np.concatenate([low & 63, high & 15 | low >> 2 & 48], axis=1)
    minima = np.concatenate([middle & 63, high >> 4 | middle >> 2 & 48], axis=1)
    return scales, minima


def _with_scales_of_k(blocks: Bytes, integers: Bytes) -> Groups:
    units, (scales, minima) = _half(blocks[:, :4]), _scales_of_k(blocks[:, 4:16])
    grouped = integers.reshape(len(blocks), 8, 32).astype(np.int16)
    return Groups(grouped, units[:, :1] * scales, units[:, 1:] * minima)


def _q4_k(blocks: Bytes) -> Groups:
    return _with_scales_of_k(blocks, _bits(blocks[:, 16:], 4, 32))


def _q5_k(blocks: Bytes) -> Groups:
    return _with_scales_of_k(
        blocks, _bits(blocks[:, 48:], 4, 32) | _bits(blocks[:, 16:48], 1, 32) << np.uint8(4)
    )


def _q6_k(blocks: Bytes) -> Groups:
    low, high = _bits(blocks[:, :128], 4, 64), _bits(blocks[:, 128:192], 2, 32)
    integers = (low | high << 4).astype(np.int16) - 32
    scales = blocks[:, 192:208].view(np.int8) * _half(blocks[:, 208:])
    return Groups(integers.reshape(len(blocks), 16, 16), scales)


_NL = np.array(PACKED_TYPES["int4_nl"].values, np.int16)
_E2M1 = np.array(PACKED_TYPES["mxfp4"].values, np.int16)


def _iq4_nl(blocks: Bytes) -> Groups:
    return _one_group(_NL[_nibbles(blocks[:, 2:])], _half(blocks[:, :2]))


def _iq4_xs(blocks: Bytes) -> Groups:
    low = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=2).reshape(len(blocks), 8)
    high = np.ascontiguousarray(blocks[:, 2:4]).view(np.uint16) >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    scales = _half(blocks[:, :2]) * ((low | high << 4).astype(np.int16) - 32)
    integers = _nibbles(blocks[:, 8:].reshape(len(blocks), 8, 16))
    return Groups(_NL[integers], scales)


def _powers_of_two(exponents: Bytes) -> Float32:
    """The scales of mxfp4's doubled integers."""
    return np.ldexp(np.float32(1), exponents.astype(np.int32) - 128)


def _mxfp4(blocks: Bytes) -> Groups:
    return _one_group(_E2M1[_nibbles(blocks[:, 1:])], _powers_of_two(blocks[:, :1]))


def _halves_carried(offset: int) -> Callable[[Bytes], Quantised]:
    """For blocks of a float16 scale and 32 codes of four bits, which begin at `offset`."""
    return lambda blocks: Quantised(_nibbles(blocks[:, :, offset:]), _stored_scales(blocks))


def _stored_scales(blocks: Bytes) -> NDArray[np.float16]:
    return np.ascontiguousarray(blocks[:, :, :2]).view(np.float16)[:, :, 0]


def _q5_0_carried(blocks: Bytes) -> Quantised:
    rows, count, nbytes = blocks.shape
    integers = _q5_0(blocks.reshape(-1, nbytes)).integers
    return Quantised(
        (integers + 128).astype(np.uint8).reshape(rows, count, GROUP_VALUES), _stored_scales(blocks)
    )


def _q8_0_carried(blocks: Bytes) -> Quantised:
    return Quantised(blocks[:, :, 2:] ^ np.uint8(128), _stored_scales(blocks))


def _mxfp4_carried(blocks: Bytes) -> Quantised:
    return Quantised(_nibbles(blocks[:, :, 1:]), f32_to_bf16(_powers_of_two(blocks[:, :, 0])))


def _q4_k_carried(blocks: Bytes) -> Quantised:
    rows, count, nbytes = blocks.shape
    flat = blocks.reshape(-1, nbytes)
    units = np.ascontiguousarray(flat[:, :4]).view(np.float16).reshape(rows, count, 2)
    scales, minima = _scales_of_k(flat[:, 4:16])
    return Quantised(
        _bits(flat[:, 16:], 4, 32).reshape(rows, -1, GROUP_VALUES),
        scales.reshape(rows, -1),
        minima.reshape(rows, -1),
        units[:, :, 0],
        units[:, :, 1],
    )


BLOCK_TYPES = {
    2: BlockType("Q4_0", 32, 18, _q4_0, "int4", _halves_carried(2)),
    3: BlockType("Q4_1", 32, 20, _q4_1, "int4_min"),
    6: BlockType("Q5_0", 32, 22, _q5_0, "int8", _q5_0_carried),
    7: BlockType("Q5_1", 32, 24, _q5_1, "int8"),
    8: BlockType("Q8_0", 32, 34, _q8_0, "int8", _q8_0_carried),
    10: BlockType("Q2_K", _SUPER, 84, _q2_k, "int4_min"),
    11: BlockType("Q3_K", _SUPER, 110, _q3_k, "int4_min"),
    12: BlockType("Q4_K", _SUPER, 144, _q4_k, "int4_min", _q4_k_carried),
    13: BlockType("Q5_K", _SUPER, 176, _q5_k, "int8"),
    14: BlockType("Q6_K", _SUPER, 210, _q6_k, "int8"),
    20: BlockType("IQ4_NL", 32, 18, _iq4_nl, "int4_nl", _halves_carried(2)),
    23: BlockType("IQ4_XS", _SUPER, 136, _iq4_xs, "int4_nl"),
    39: BlockType("MXFP4", 32, 17, _mxfp4, "mxfp4", _mxfp4_carried),
}
"""By the number that a file has for them."""
PLAIN_TYPES = {0: "F32", 1: "F16", 30: "BF16"}
"""The types of tensors that are not quantised, by their number."""
