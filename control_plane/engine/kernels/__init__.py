"""The engine's own computing: linear layers with packed weights, attention and norms, in C and in NumPy.

`load_dense_kernel()` picks the fastest kernel that this machine runs. The C extension `_dense` is optional:
without it, the only kernel is "numpy". It is built from the headers in functions/kernels/csrc; isa/isa.h
there says how to add an instruction set.
"""

from functions.kernels.selection import selected

from .c_dense import CDenseKernel, compiled_isas
from .dense import DeltaRows, DenseKernel, LinearLayer, Scores, ShortConvolution
from .numpy_dense import NumpyDenseKernel

__all__ = [
    "DeltaRows",
    "DenseKernel",
    "LinearLayer",
    "Scores",
    "ShortConvolution",
    "available_dense_isas",
    "load_dense_kernel",
]


def available_dense_isas() -> tuple[str, ...]:
    """The kernels that this machine runs, fastest first. "numpy" is always the last."""
    return (*compiled_isas(), NumpyDenseKernel.name)


def load_dense_kernel(isa: str | None = None) -> DenseKernel:
    """The kernel of that name, or of FAASMOE_KERNEL, or the fastest.

    Raises ValueError for one that this machine does not run.
    """
    name = selected(available_dense_isas(), isa)
    return NumpyDenseKernel() if name == NumpyDenseKernel.name else CDenseKernel(name)
