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
def layer_program(
    isa: str,
    dtype: str,
    sizes: tuple[int, int, int, int, int, int],
    factors: tuple[float, float, float, float],
    heads: tuple[bool, bool, bool, str],
    router: tuple[object, ...],
    norms: tuple[NDArray[Any] | None, ...],
    matrices: tuple[tuple[object, ...] | None, ...],
    ffn: tuple[object, ...] | None,
    /,
) -> object: ...
def layer_begin(
    program: object,
    layer: int,
    threads: int,
    cache_sizes: tuple[int, int, int, int, int],
    cache: NDArray[Any],
    hidden: NDArray[Any],
    cosine: NDArray[Any],
    sine: NDArray[Any],
    lanes: NDArray[Any],
    positions: NDArray[Any],
    normalised: NDArray[Any],
    index: NDArray[Any],
    weights: NDArray[Any],
    /,
) -> None: ...
def layer_shared(
    program: object, threads: int, rows: int, normalised: NDArray[Any], out: NDArray[Any], /
) -> None: ...
def layer_end(
    program: object,
    hidden: NDArray[Any],
    routed_dtype: str,
    routed: NDArray[Any] | None,
    shared: NDArray[Any] | None,
    /,
) -> None: ...
