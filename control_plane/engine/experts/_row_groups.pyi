"""The C extension, built from csrc/row_groups.c. row_groups.py is its public interface."""

from typing import Any

from numpy.typing import NDArray

def group(
    rows: int,
    top_k: int,
    row_nbytes: int,
    owner: NDArray[Any],
    index: NDArray[Any],
    weights: NDArray[Any],
    hidden: NDArray[Any],
    out_rows: NDArray[Any],
    out_index: NDArray[Any],
    out_weights: NDArray[Any],
    out_hidden: NDArray[Any],
    /,
) -> list[tuple[int, int, int]]: ...
def add_up(
    rows: int,
    size: int,
    is_bf16: bool,
    parts: tuple[tuple[NDArray[Any] | None, NDArray[Any]], ...],
    out: NDArray[Any],
    /,
) -> None: ...
