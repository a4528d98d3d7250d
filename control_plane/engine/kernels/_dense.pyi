"""The C extension, built from csrc/dense.c. `DenseKernel` is its public interface."""

from typing import Any

from numpy.typing import NDArray

def isas() -> tuple[str, ...]: ...
def linear(
    isa: str,
    weight_dtype: str,
    dtype: str,
    rows: int,
    inputs: int,
    threads: int,
    x: NDArray[Any],
    layers: tuple[tuple[int, NDArray[Any], NDArray[Any] | None, NDArray[Any]], ...],
    /,
) -> None: ...
def attention(
    isa: str,
    dtype: str,
    lanes: int,
    layers: int,
    kv_heads: int,
    tokens: int,
    head_dim: int,
    layer: int,
    rows: int,
    heads: int,
    window: int,
    scaling: float,
    threads: int,
    cache: NDArray[Any],
    query: NDArray[Any],
    key: NDArray[Any],
    value: NDArray[Any],
    cosine: NDArray[Any],
    sine: NDArray[Any],
    lane: NDArray[Any],
    position: NDArray[Any],
    attending: NDArray[Any],
    out: NDArray[Any],
    /,
) -> None: ...
def rms_norm(
    isa: str,
    dtype: str,
    rows: int,
    size: int,
    epsilon: float,
    x: NDArray[Any],
    weight: NDArray[Any],
    out: NDArray[Any],
    /,
) -> None: ...
