"""Quantisation of weights by rounding: a group's scale reaches its largest weight, each code is the nearest.

A group's scale is float16, or a power of two for mxfp4. A float16 scale below 6e-5 has fewer bits, so that
int8 weights below 0.008 have errors of up to 4e-6 beside those of their codes; one below 3e-8 becomes 0, and
its weights with it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bfloat16 import Float32, bf16_to_f32, f32_to_bf16
from .packed_tiles import Quantised
from .packed_types import HEADER_GROUPS, PackedType

LARGEST_WEIGHT = 65504
"""The largest weight that can be quantised: that of float16."""


Quantiser = Callable[[PackedType, Float32, Float32], Quantised]
"""Quantises weights [rows, groups, 32] of at most `LARGEST_WEIGHT` to a type.

Each input's error counts as much as its importance [groups, 32].
"""


def quantise(kind: PackedType, weights: Float32, importance: Float32) -> Quantised:
    """The plain `Quantiser`, to which all errors count alike."""
    if kind.has_minima:
        return _with_minima(weights)
    if kind.name == "mxfp4":
        bits = f32_to_bf16(_power_of_two(weights))
        return Quantised(_nearest(kind.values, _quotients(weights, bf16_to_f32(bits))), bits)
    scales = _reaching(kind, weights).astype(np.float16)
    return Quantised(_nearest(kind.values, _quotients(weights, scales.astype(np.float32))), scales)


def _reaching(kind: PackedType, weights: Float32) -> Float32:
    """Scales [rows, groups] by which the integers reach the largest weights."""
    least, largest = weights.min(axis=2), weights.max(axis=2)
    if kind.name == "int8":
        absolute: Float32 = np.maximum(-least, largest) / np.float32(127)
        return absolute
    # The negative end of the integers reaches further, so it is for the largest weight.
    scales: Float32 = np.where(largest > -least, largest, least) / np.float32(min(kind.values))
    return scales


def _power_of_two(weights: Float32) -> Float32:
    """The powers of two [rows, groups] by which the largest weights are between 8 and 16."""
    _, exponent = np.frexp(np.abs(weights).max(axis=2))
    scales: Float32 = np.ldexp(np.float32(1), np.maximum(exponent - 4, -128))
    return scales


def _with_minima(weights: Float32) -> Quantised:
    """Quantise to int4_min."""
    low = np.minimum(weights.min(axis=2), 0)
    unit_scales, scales = in_units((weights.max(axis=2) - low) / np.float32(15))
    unit_minima, minima = in_units(-low)
    scale = scales * by_group(unit_scales, scales)
    low = minima * by_group(unit_minima, minima)
    quotients = _quotients(weights + low[:, :, None], scale)
    return Quantised(_nearest(range(16), quotients), scales, minima, unit_scales, unit_minima)


def in_units(values: Float32) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    """Positive values [rows, groups] as a unit for each header [rows, headers], and multiples of it."""
    starts = np.arange(0, values.shape[1], HEADER_GROUPS)
    unit = (np.maximum.reduceat(values, starts, axis=1) / np.float32(255)).astype(np.float16)
    quotients = _quotients(values[:, :, None], by_group(unit, values))[:, :, 0]
    return unit, np.clip(np.rint(quotients), 0, 255).astype(np.uint8)


def by_group(units: NDArray[np.float16], like: NDArray[Any]) -> Float32:
    """Units [rows, headers] as float32 [rows, groups]."""
    return np.repeat(units.astype(np.float32), HEADER_GROUPS, axis=1)[:, : like.shape[1]]


def _nearest(values: Sequence[int], quotients: Float32) -> NDArray[np.uint8]:
    """The codes of the integers that are nearest to the quotients."""
    if isinstance(values, range):
        codes = np.rint(quotients)
        codes -= values[0]
        return np.clip(codes, 0, len(values) - 1, out=codes).astype(np.uint8)
    order = np.argsort(values, kind="stable")
    ascending = np.array(values, np.float32)[order]
    nearest = np.searchsorted((ascending[1:] + ascending[:-1]) / 2, quotients)
    return order.astype(np.uint8)[nearest]


def _quotients(weights: Float32, scales: Float32) -> Float32:
    """Weights [rows, groups, values] by scales [rows, groups]; 0 where the scale is."""
    divisor = np.where(scales == 0, np.float32(np.inf), scales)
    quotients: Float32 = np.divide(weights, divisor[:, :, None], dtype=np.float32)
    return quotients
