"""The search for the scales and minima of quantised weights, in C and in NumPy.

The types of four bits have so few codes that the scale that reaches the largest weight is not the best one.
The search begins with several shares of it, and each time fits a line anew to the codes that are nearest,
with the error of each input's weights weighted by its importance. The least error is kept.

The implementation in C is for partitioning large models: it searches as fast as NumPy quantises to int8. The
one in NumPy runs everywhere, and specifies it to the last bit.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from functions.kernels.bfloat16 import Float32
from functions.kernels.packed_tiles import Quantised
from functions.kernels.packed_types import PackedType
from functions.kernels.quantisation import by_group, in_units, quantise

try:
    from control_plane.partition.quantisation import _scale_search
except ImportError:
    _scale_search = None  # type: ignore[assignment]

SHARES = np.array([1.1, 1.0, 0.9, 0.8], np.float32)
"""The scales that the search begins with, as shares of that which reaches the largest weight."""
ROUNDS = 4
"""How often a line is fitted anew for each of them."""
_ROUNDING = np.float32(1.5 * 2**23)


class ScaleSearch(ABC):
    """Quantises weights with a search for scales: its method is a `functions.kernels` `Quantiser`."""

    def quantise(self, kind: PackedType, weights: Float32, importance: Float32) -> Quantised:
        """Quantise weights [rows, groups, 32]; each input's error counts by its importance [groups, 32].

        The weights are at most `LARGEST_WEIGHT`. Types whose integers are not evenly spaced, and int8, which
        has enough of them, are rounded plainly (`functions.kernels.quantisation`).
        """
        if kind.bits != 4 or not isinstance(kind.values, range):
            return quantise(kind, weights, importance)
        # Without any importance, a group would have no best scale.
        importance = importance + np.float32(1e-6) * importance.max(initial=0) + np.finfo(np.float32).tiny
        scale, low = self.search(kind, weights, importance)
        if not kind.has_minima:
            halves = scale.astype(np.float16)
            return Quantised(self.codes(kind, weights, halves.astype(np.float32), low), halves)
        unit_scales, scales = in_units(scale)
        unit_minima, minima = in_units(-low)
        scale = scales * by_group(unit_scales, scales)
        low = -(minima * by_group(unit_minima, minima))
        return Quantised(self.codes(kind, weights, scale, low), scales, minima, unit_scales, unit_minima)

    @abstractmethod
    def search(self, kind: PackedType, weights: Float32, importance: Float32) -> tuple[Float32, Float32]:
        """The scales and the lowest values [rows, groups], which are zero for a type without minima."""

    @abstractmethod
    def codes(self, kind: PackedType, weights: Float32, scale: Float32, low: Float32) -> NDArray[np.uint8]:
        """The codes [rows, groups, 32] that are nearest to the weights."""


class CScaleSearch(ScaleSearch):
    """The C extension."""

    def search(self, kind: PackedType, weights: Float32, importance: Float32) -> tuple[Float32, Float32]:
        scale, low = (np.empty(weights.shape[:2], np.float32) for _ in range(2))
        first, last = kind.values[0], kind.values[-1]
        arrays = np.ascontiguousarray(weights), np.ascontiguousarray(importance), scale, low
        _scale_search.search(*arrays, SHARES, first, last, kind.has_minima, ROUNDS)
        return scale, low

    def codes(self, kind: PackedType, weights: Float32, scale: Float32, low: Float32) -> NDArray[np.uint8]:
        codes = np.empty(weights.shape, np.uint8)
        arrays = np.ascontiguousarray(weights), np.ascontiguousarray(scale), np.ascontiguousarray(low)
        _scale_search.encode(*arrays, codes, kind.values[0], kind.values[-1])
        return codes


class NumpyScaleSearch(ScaleSearch):
    """The specification. Sums run over the inputs of a group in their order."""

    def search(self, kind: PackedType, weights: Float32, importance: Float32) -> tuple[Float32, Float32]:
        group = _Group.of(weights, importance)
        zero = np.zeros(weights.shape[:2], np.float32)
        best_scale, best_low, least = zero, zero, np.full(zero.shape, np.inf, np.float32)
        for share in SHARES:
            scale, low = _start(kind, weights, share)
            for _ in range(ROUNDS):
                scale, low, error = _fitted(kind, group, scale, low)
                better = error < least
                best_scale, best_low = np.where(better, scale, best_scale), np.where(better, low, best_low)
                least = np.where(better, error, least)
        return best_scale, best_low

    def codes(self, kind: PackedType, weights: Float32, scale: Float32, low: Float32) -> NDArray[np.uint8]:
        nearest = _nearest(kind, weights, scale[:, :, None], low[:, :, None])
        return (nearest - np.float32(kind.values[0])).astype(np.uint8)


def load_scale_search() -> ScaleSearch:
    """The implementation in C, or the one in NumPy where the extension was not built."""
    return NumpyScaleSearch() if _scale_search is None else CScaleSearch()


@dataclass(frozen=True)
class _Group:
    """Groups of weights, and the sums over their inputs that do not depend on codes."""

    inputs: Sequence[tuple[Float32, Float32]]
    """For each of the 32 inputs, its weights [rows, groups] and its importance [groups]."""
    importance: Float32
    """[groups]"""
    weights: Float32
    """The sum of weights, [rows, groups]."""
    squares: Float32
    """The sum of squared weights, [rows, groups]."""

    @classmethod
    def of(cls, weights: Float32, importance: Float32) -> "_Group":
        inputs = list(zip(np.moveaxis(weights, 2, 0), importance.T, strict=True))
        total = np.zeros(weights.shape[1], np.float32)
        linear, squares = (np.zeros(weights.shape[:2], np.float32) for _ in range(2))
        for weight, counts in inputs:
            counted = counts * weight
            total, linear, squares = total + counts, linear + counted, squares + counted * weight
        return cls(inputs, total, linear, squares)


def _start(kind: PackedType, weights: Float32, share: np.float32) -> tuple[Float32, Float32]:
    """Scales and lowest values by which the codes reach a share of the weights' range."""
    least, largest = np.minimum(weights.min(axis=2), 0), np.maximum(weights.max(axis=2), 0)
    if kind.has_minima:
        low = least * share
        return (largest * share - low) / np.float32(kind.values[-1]), low
    # The negative end of the codes reaches further, so it is for the largest weight.
    end = np.where(largest > -least, largest, least)
    return end * share / np.float32(kind.values[0]), np.zeros_like(end)


def _fitted(
    kind: PackedType, group: _Group, scale: Float32, low: Float32
) -> tuple[Float32, Float32, Float32]:
    """The lines that fit best to the codes that are nearest on the present ones, and their errors.

    A lowest value is not above zero: where it would be, the line goes through zero.
    """
    codes, squares, products = (np.zeros_like(scale) for _ in range(3))
    for weight, counts in group.inputs:
        code = _nearest(kind, weight, scale, low)
        counted = counts * code
        codes, squares, products = codes + counted, squares + counted * code, products + counted * weight
    scale = _divided(products, squares)
    low = np.zeros_like(scale)
    if kind.has_minima:
        spread = group.importance * squares - codes * codes
        slope = _divided(group.importance * products - codes * group.weights, spread)
        start = (group.weights - slope * codes) / group.importance
        below = (spread > 0) & (start < 0)
        scale, low = np.where(below, slope, scale), np.where(below, start, low)
    return scale, low, (group.squares - scale * products) - low * group.weights


def _nearest(kind: PackedType, weights: Float32, scale: Float32, low: Float32) -> Float32:
    """The integers that are nearest to (weights - low) / scale. Adding 1.5 * 2**23 rounds to an integer."""
    by = _divided(np.ones_like(scale), scale)
    quotients = np.clip((weights - low) * by, np.float32(kind.values[0]), np.float32(kind.values[-1]))
    nearest: Float32 = (quotients + _ROUNDING) - _ROUNDING
    return nearest


def _divided(above: Float32, below: Float32) -> Float32:
    """The quotient; 0 where the divisor is zero."""
    quotient: Float32 = np.divide(above, below, out=np.zeros_like(above), where=below != 0)
    return quotient
