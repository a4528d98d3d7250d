"""What an expert computes between its two products, as NumPy computes it; csrc/activations.h does in C."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .bfloat16 import Float32

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Activation:
    """f(gate) * (up + up_offset), or f(up) for an expert without a gate.

    Raises ValueError for an unknown function, a number that is not finite as float32, a limit that is not
    positive, and a number that would not count.
    """

    function: str = "silu"
    """f, one of `FUNCTIONS`: "silu" is x * sigmoid(alpha * x), "relu2" the square of relu."""
    gated: bool = True
    limit: float | None = None
    """Gates are made this large at most, and ups in absolute value, before all else; None for any."""
    alpha: float = 1.0
    """Of silu only."""
    up_offset: float = 0.0

    def __post_init__(self) -> None:
        if self.function not in FUNCTIONS:
            raise ValueError(f"the function is {self.function[:20]!r}, not one of {', '.join(FUNCTIONS)}")
        for name in ("limit", "alpha", "up_offset"):
            number = getattr(self, name)
            # So written, NaN is refused, too.
            if number is not None and not abs(number) <= _LARGEST:
                raise ValueError(f"{name} is not a finite number")
        if self.limit is not None and self.limit <= 0:
            raise ValueError(f"limit is {self.limit}, not above 0")
        if self.function != "silu" and self.alpha != 1:
            raise ValueError("only silu has an alpha")
        if not self.gated and (self.limit is not None or self.up_offset):
            raise ValueError("without a gate there is no limit and no up_offset")

    def __call__(self, gate: Float32 | None, up: Float32) -> Float32:
        """The inputs of down [T, I]. `gate` [T, I] is None for an expert without."""
        return self.of_gate(up) if gate is None else self.of_gate(gate) * self.of_up(up)

    def of_gate(self, gate: Float32) -> Float32:
        """The factor that the gate makes; of an expert without a gate, the result for `up`."""
        if self.limit is not None:
            gate = np.minimum(gate, self.limit)
        with np.errstate(over="ignore", invalid="ignore"):
            return _FUNCTIONS[self.function](gate, self.alpha)

    def of_up(self, up: Float32) -> Float32:
        """The factor that up makes beside a gate."""
        if self.limit is not None:
            up = np.clip(up, -self.limit, self.limit)
        return up + np.float32(self.up_offset)


def _silu(x: Float32, alpha: float) -> Float32:
    silu: Float32 = x / (1 + np.exp(-alpha * x))
    return silu


def _gelu_tanh(x: Float32, _: float) -> Float32:
    """x / 2 * (1 + tanh(u)), in the form that loses no digits where tanh(u) is near -1."""
    u = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
    gelu: Float32 = x / (1 + np.exp(-2 * u))
    return gelu


def _gelu(x: Float32, _: float) -> Float32:
    phi = 0.5 * _erfc(x.astype(np.float64) * -math.sqrt(0.5))
    gelu: Float32 = (x * phi).astype(np.float32)
    return gelu


def _relu(x: Float32, _: float) -> Float32:
    return np.maximum(x, np.float32(0))


def _relu2(x: Float32, _: float) -> Float32:
    squares: Float32 = np.square(np.maximum(x, np.float32(0)))
    return squares


_erfc = np.vectorize(math.erfc, otypes=[np.float64])
_FUNCTIONS: dict[str, Callable[[Float32, float], Float32]] = {
    "silu": _silu,
    "gelu_tanh": _gelu_tanh,
    "gelu": _gelu,
    "relu": _relu,
    "relu2": _relu2,
}
FUNCTIONS = tuple(_FUNCTIONS)
"""In the order of `enum activation_function` in csrc/layout.h."""

SWIGLU = Activation()
"""silu(gate) * up (arXiv 2002.05202), which most families have."""
