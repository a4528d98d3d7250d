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
    rows: int,
    heads: int,
    window: int | None,
    scaling: float,
    softcap: float,
    threads: int,
    keys: NDArray[Any],
    values: NDArray[Any],
    query: NDArray[Any],
    key: NDArray[Any],
    value: NDArray[Any] | None,
    sinks: NDArray[Any] | None,
    lanes: NDArray[Any],
    positions: NDArray[Any],
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
def delta_rule(
    isa: str,
    rows: int,
    heads: int,
    key_heads: int,
    key_size: int,
    value_size: int,
    decay_size: int,
    threads: int,
    states: NDArray[Any],
    query: NDArray[Any],
    key: NDArray[Any],
    value: NDArray[Any],
    decay: NDArray[Any],
    beta: NDArray[Any],
    sources: NDArray[Any],
    targets: NDArray[Any],
    out: NDArray[Any],
    /,
) -> None: ...
def short_convolution(
    isa: str,
    dtype: str,
    rows: int,
    channels: int,
    taps: int,
    silu: bool,
    states: NDArray[Any],
    x: NDArray[Any],
    weight: NDArray[Any],
    bias: NDArray[Any] | None,
    sources: NDArray[Any],
    targets: NDArray[Any],
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
