"""The gated FFN of experts, in C for several instruction sets and in NumPy, and the packed form of weights.

`load_kernel()` picks the fastest kernel that this machine runs. The C extension `_gated_ffn` is optional:
without it, the only kernel is "numpy". The engine's linear layers, attention and norms are in
`control_plane.engine.kernels`, whose extension is built from the same headers.

csrc/isa/isa.h says how to add an instruction set. Both extensions and all tests then use it.
"""

from .activation import Activation
from .arguments import MAX_THREADS
from .gated_ffn import GatedFFNKernel, available_isas, load_kernel
from .packed_expert import ExpertShape
from .packed_matrix import LinearShape

__all__ = [
    "MAX_THREADS",
    "Activation",
    "ExpertShape",
    "GatedFFNKernel",
    "LinearShape",
    "available_isas",
    "load_kernel",
]
