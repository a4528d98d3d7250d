"""The C extension, built from csrc/plain_calls.c. plain_calls.py is its public interface."""

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

def send(calls: Sequence[tuple[Any, ...]], /) -> list[int]: ...
def receive(
    seconds: float, calls: Sequence[tuple[int, bytes, NDArray[Any]]], /
) -> list[tuple[str, str, float, int, int] | bytes]: ...
