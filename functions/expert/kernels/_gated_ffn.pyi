"""The C extension, built from gated_ffn.c. `Kernel` is its public face."""

from typing import Any

from numpy.typing import NDArray

def isas() -> tuple[str, ...]: ...
def run(
    isa: str,
    weight_dtype: str,
    hidden_dtype: str,
    out_dtype: str,
    rows: int,
    top_k: int,
    hidden_size: int,
    intermediate_size: int,
    threads: int,
    block: NDArray[Any],
    offsets: NDArray[Any],
    hidden_states: NDArray[Any],
    expert_index: NDArray[Any],
    expert_weight: NDArray[Any],
    carry: NDArray[Any] | None,
    out: NDArray[Any],
    /,
) -> None: ...
def linear(
    isa: str,
    weight_dtype: str,
    dtype: str,
    rows: int,
    inputs: int,
    outputs: int,
    threads: int,
    weights: NDArray[Any],
    x: NDArray[Any],
    bias: NDArray[Any] | None,
    out: NDArray[Any],
    /,
) -> None: ...
