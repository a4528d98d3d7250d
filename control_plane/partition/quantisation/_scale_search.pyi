"""The C extension, built from csrc/scale_search.c. `CScaleSearch` is its public interface."""

import numpy as np
from numpy.typing import NDArray

def search(
    weights: NDArray[np.float32],
    importance: NDArray[np.float32],
    scale: NDArray[np.float32],
    low: NDArray[np.float32],
    shares: NDArray[np.float32],
    first: float,
    last: float,
    has_minima: bool,
    rounds: int,
    /,
) -> None: ...
def encode(
    weights: NDArray[np.float32],
    scale: NDArray[np.float32],
    low: NDArray[np.float32],
    codes: NDArray[np.uint8],
    first: float,
    last: float,
    /,
) -> None: ...
