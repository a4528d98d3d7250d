"""The types of packed weights: the integers that their codes stand for, and the bytes of a tile.

A tile is 32 rows of a matrix, stored as one sequence of *groups* of inputs. A group has the codes of its
inputs in steps of [32 rows] dwords, the operand shape of the CPU's fma, vdpbf16ps and vpdpbusd instructions,
so a kernel loads whole steps in order. A group of a quantised type has 32 inputs, and after its codes a scale
of each row:

    value = scale * code                      int8, int4, int4_nl, mxfp4
    value = scale * code - minimum            int4_min

where `code` is the integer of the stored code. The types of four bits store two steps in one: the low half of
a byte is of the first step, the high half of the second. int4_min stores scales and minima as bytes, whose
units are the numbers of a *header* [32 rows] before every 8 groups.

int8, int4, int4_nl, mxfp4 and int4_min hold without loss what GGUF's Q8_0, Q4_0, IQ4_NL, MXFP4 and Q4_K hold.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TILE_ROWS = 32
GROUP_VALUES = 32
"""Inputs that share a scale: of quantised weights, and of activations."""
HEADER_GROUPS = 8
"""Groups that share a header."""

GroupDtype = np.dtype[Any]


@dataclass(frozen=True)
class PackedType:
    """A type of packed weights."""

    name: str
    group: GroupDtype
    """The bytes of one group: its codes [steps, rows, values of a dword], then its scales and minima."""
    group_values: int
    """Inputs of a group. Inputs that do not fill a group are padded."""
    values: Sequence[int] = ()
    """The integer of each code; empty for a type that is not quantised."""
    header: GroupDtype | None = None
    """The bytes before every `HEADER_GROUPS` groups, of which the last may be fewer."""

    @property
    def is_quantised(self) -> bool:
        return bool(self.values)

    @property
    def has_minima(self) -> bool:
        return self.header is not None

    @property
    def bits(self) -> int:
        """Bits of a quantised type's code."""
        return 8 if len(self.values) > 16 else 4

    def groups(self, inputs: int) -> int:
        """The number of groups for this many inputs."""
        return -(-inputs // self.group_values)

    def tile_nbytes(self, inputs: int) -> int:
        """Bytes of a tile for this many inputs."""
        groups = self.groups(inputs)
        headers = -(-groups // HEADER_GROUPS) * self.header.itemsize if self.header else 0
        return groups * self.group.itemsize + headers


def packed_type(name: str) -> PackedType:
    """The type of that name. Raises ValueError if there is none."""
    if name not in PACKED_TYPES:
        raise ValueError(f"weight dtype must be one of {', '.join(PACKED_TYPES)}, not {name[:20]!r}")
    return PACKED_TYPES[name]


def fits_activations(weights: str, activations: str) -> bool:
    """Whether weights of this type are used with activations of this dtype: they are of it, or quantised."""
    kind = PACKED_TYPES.get(weights)
    return kind is not None and (kind.is_quantised or weights == activations)


def _group(code: str, steps: int, values: int, *rows: tuple[str, str]) -> GroupDtype:
    """Codes [steps, 32 rows, values] of a NumPy dtype, then numbers [32 rows] of these names and dtypes."""
    return np.dtype([("codes", code, (steps, TILE_ROWS, values)), *((*row, TILE_ROWS) for row in rows)])


_HALF = ("scales", "<f2")
_FOUR_BITS = _group("u1", 4, 4, _HALF)
_HEADER = np.dtype([("scales", "<f2", TILE_ROWS), ("minima", "<f2", TILE_ROWS)])
# Integers that are nearly as far apart as quantiles of a normal distribution.
_NORMAL_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
# Twice the values of the OCP's four-bit floats with two bits of exponent and one of mantissa.
_E2M1_VALUES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)

PACKED_TYPES = {
    each.name: each
    for each in (
        PackedType("f32", _group("<f4", 1, 1), 1),
        PackedType("bf16", _group("<u2", 1, 2), 2),
        # vpdpbusd multiplies unsigned by signed bytes, so codes are 128 more than their integers.
        PackedType("int8", _group("u1", 8, 4, _HALF), GROUP_VALUES, range(-128, 128)),
        PackedType("int4", _FOUR_BITS, GROUP_VALUES, range(-8, 8)),
        PackedType("int4_nl", _FOUR_BITS, GROUP_VALUES, _NORMAL_VALUES),
        # The scales are bits of bfloat16, which holds all powers of two of the OCP's format.
        PackedType("mxfp4", _group("u1", 4, 4, ("scales", "<u2")), GROUP_VALUES, _E2M1_VALUES),
        PackedType(
            "int4_min",
            _group("u1", 4, 4, ("scales", "u1"), ("minima", "u1")),
            GROUP_VALUES,
            range(16),
            _HEADER,
        ),
    )
}
"""By name."""
