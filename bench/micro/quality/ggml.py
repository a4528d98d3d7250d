"""llama.cpp's Q4_K_M: what its library makes of a matrix. Its role and layer choose the type."""

import ctypes
from pathlib import Path

import numpy as np

from functions.kernels.bfloat16 import Float32

_NUMBERS = {"q5_0": 6, "q8_0": 8, "q4_K": 12, "q6_K": 14}
_NBYTES = {"q5_0": 22 / 32, "q8_0": 34 / 32, "q4_K": 144 / 256, "q6_K": 210 / 256}
_FALLBACK = {"q4_K": "q5_0", "q6_K": "q8_0"}
"""For rows that are no multiple of 256."""


class Q4KM:
    """Quantises and dequantises matrices."""

    def __init__(self, library: Path, num_layers: int) -> None:
        """`library` is llama.cpp's libggml-base.so."""
        self._library = ctypes.CDLL(str(library))
        self._library.ggml_quantize_chunk.restype = ctypes.c_size_t
        self._num_layers = num_layers
        self.nbytes = 0.0
        """Bytes of the matrices so far."""

    def __call__(self, name: str, matrix: Float32) -> Float32:
        """The matrix [N, K] as it is after quantisation without data."""
        kind = self._kind(name)
        if matrix.shape[1] % 256:
            kind = _FALLBACK[kind]
        self.nbytes += matrix.size * _NBYTES[kind]
        packed, result = np.empty(matrix.nbytes, np.uint8), np.empty_like(matrix)
        rows, columns = (ctypes.c_int64(size) for size in matrix.shape)
        source, target, back = (ctypes.c_void_p(each.ctypes.data) for each in (matrix, packed, result))
        self._library.ggml_quantize_chunk(
            _NUMBERS[kind], source, target, ctypes.c_int64(0), rows, columns, None
        )
        getattr(self._library, f"dequantize_row_{kind}")(target, back, ctypes.c_int64(matrix.size))
        return result

    def _kind(self, name: str) -> str:
        if name == "output.weight":
            return "q6_K"
        _, layer, role, _ = name.split(".")
        number, eighth = int(layer), self._num_layers // 8
        more = number < eighth or number >= 7 * self._num_layers // 8 or (number - eighth) % 3 == 2
        return "q6_K" if role in ("attn_v", "ffn_down") and more else "q4_K"
