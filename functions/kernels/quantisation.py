"""Quantisation of weights: the codes, scales and minima that are nearest to them.

*Nearest* is the least sum of squared errors, each weighted by the importance of its input: the mean square of
the activations that the input gets, where it is known. A group's scale is float16, or a power of two for
mxfp4. A float16 scale below 6e-5 has fewer bits, so that int8 weights below 0.008 have errors of up to 4e-6
beside those of their codes; one below 3e-8 becomes 0, and its weights with it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bfloat16 import Float32, f32_to_bf16
from .packed_tiles import Quantised
from .packed_types import HEADER_GROUPS, PackedType

LARGEST_WEIGHT = 65504
"""The largest weight that can be quantised: that of float16."""
_SEARCHED = (1.0, 0.92, 0.84)
"""The scales that are tried, as shares of that which reaches the largest value of a group."""


Quantiser = Callable[[PackedType, Float32, Float32], Quantised]
"""A function like `quantise`."""


def quantise(kind: PackedType, weights: Float32, importance: Float32) -> Quantised:
    """Quantise weights [rows, groups, 32]; each input's error counts as much as its importance [groups, 32].

    The weights are at most `LARGEST_WEIGHT`.
    """
    # An importance of zero everywhere would leave a group without a best scale.
    importance = importance + np.float32(1e-6) * importance.max(initial=0) + np.finfo(np.float32).tiny
    if kind.has_minima:
        return _with_minima(weights, importance)
    if kind.name == "int8":
        scales = (np.abs(weights).max(axis=2) / np.float32(127)).astype(np.float16)
        return Quantised(_nearest(kind.values, _quotients(weights, scales.astype(np.float32))), scales)
    if kind.name == "mxfp4":
        candidates = [_power_of_two(weights, step) for step in (0, 1)]
        codes, best = _best(kind, weights, importance, candidates)
        return Quantised(codes, f32_to_bf16(best))
    codes, best = _best(kind, weights, importance, _scales_to_search(kind, weights, importance))
    return Quantised(codes, best.astype(np.float16))


def _best(
    kind: PackedType, weights: Float32, importance: Float32, candidates: Sequence[Float32]
) -> tuple[NDArray[np.uint8], Float32]:
    """The codes, and the best of several scales [rows, groups] for each group."""
    integers = np.array(kind.values, np.float32)
    best, least = candidates[0], np.full(weights.shape[:2], np.inf, np.float32)
    for scales in candidates:
        errors = integers[_nearest(kind.values, _quotients(weights, scales))]
        errors *= scales[:, :, None]
        errors -= weights
        error = np.einsum("rgi,rgi,gi->rg", errors, errors, importance)
        best = np.where(error < least, scales, best)
        least = np.minimum(error, least)
    return _nearest(kind.values, _quotients(weights, best)), best


def _scales_to_search(kind: PackedType, weights: Float32, importance: Float32) -> list[Float32]:
    """Scales [rows, groups] to try, as float16 holds them; each fits best to the codes of a first guess."""
    integers = np.array(kind.values, np.float32)
    reach = weights.max(axis=2), weights.min(axis=2)
    largest = np.where(reach[0] > -reach[1], reach[0], reach[1])
    scales = []
    for share in _SEARCHED:
        # The negative end of the integers reaches further, so it is for the largest weight.
        guess = largest / integers.min() * np.float32(share)
        codes = integers[_nearest(kind.values, _quotients(weights, guess))]
        above = np.einsum("rgi,rgi,gi->rg", codes, weights, importance)
        below = np.einsum("rgi,rgi,gi->rg", codes, codes, importance)
        fitted = np.divide(above, below, out=np.zeros_like(guess), where=below > 0)
        scales.append(fitted.astype(np.float16).astype(np.float32))
    return scales


def _power_of_two(weights: Float32, step: int) -> Float32:
    """The power of two [rows, groups] by which the largest weight is between 8 and 16, down by `step`."""
    _, exponent = np.frexp(np.abs(weights).max(axis=2))
    scales: Float32 = np.ldexp(np.float32(1), np.maximum(exponent - 4 + step, -128))
    return scales


def _with_minima(weights: Float32, importance: Float32) -> Quantised:
    """Quantise to int4_min: fits a line to each group's codes, then rounds its scale and minimum."""
    low = np.minimum(weights.min(axis=2), 0)
    scale = (weights.max(axis=2) - low) / np.float32(15)
    for _ in range(2):
        codes = np.clip(np.rint(_quotients(weights - low[:, :, None], scale)), 0, 15)
        scale, low = _fitted(codes, weights, importance, scale, low)
    unit_scales, scales = _in_units(scale)
    unit_minima, minima = _in_units(-low)
    scale = scales * by_group(unit_scales, scales)
    low = minima * by_group(unit_minima, minima)
    quotients = _quotients(weights + low[:, :, None], scale)
    return Quantised(_nearest(range(16), quotients), scales, minima, unit_scales, unit_minima)


def _fitted(
    codes: Float32, weights: Float32, importance: Float32, scale: Float32, low: Float32
) -> tuple[Float32, Float32]:
    """The scale and the lowest value [rows, groups] that fit best to the codes [rows, groups, 32]."""
    total = importance.sum(axis=1)
    mean_code = np.einsum("rgi,gi->rg", codes, importance) / total
    mean_weight = np.einsum("rgi,gi->rg", weights, importance) / total
    both = np.einsum("rgi,rgi,gi->rg", codes, weights, importance) / total - mean_code * mean_weight
    spread = np.einsum("rgi,rgi,gi->rg", codes, codes, importance) / total - mean_code**2
    slope = np.divide(both, spread, out=scale.copy(), where=spread > 1e-3)
    start = mean_weight - slope * mean_code
    # The lowest value is not above zero. Where it would be, the line goes through zero.
    squares = spread + mean_code**2
    through_zero = np.divide(both + mean_code * mean_weight, squares, out=scale.copy(), where=squares > 0)
    above = start > 0
    return np.where(above, through_zero, slope), np.where(above, 0, start)


def _in_units(values: Float32) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
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
    quotients: Float32 = weights / divisor[:, :, None]
    return quotients
