"""The C extension, built from csrc/gated_ffn.c. `GatedFFNKernel` is its public interface."""

from typing import Any

from numpy.typing import NDArray

def isas() -> tuple[str, ...]: ...
def gated_ffn(
    isa: str,
    shape: tuple[object, ...],
    hidden_dtype: str,
    out_dtype: str,
    rows: int,
    top_k: int,
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
