"""The C extension, built from csrc/fast_path.c."""

from collections.abc import Callable
from ctypes import Structure
from types import TracebackType
from typing import Any, TypeVar

from numpy.typing import NDArray

from functions.fast_path import shared

Found = TypeVar("Found")
Guarded = tuple[shared.Condition, Structure]

class Condition:
    def __enter__(self) -> bool: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...
    def wait(self, timeout: float | None = None, /) -> bool: ...
    def wait_for(self, predicate: Callable[[], Found], timeout: float | None = None, /) -> Found: ...
    def notify_all(self) -> None: ...

class FastPath:
    def __new__(
        cls,
        isa: str,
        shape: tuple[object, ...],
        activation_dtype: str,
        threads: int,
        top_k: int,
        model: str,
        instance: str,
        max_body_nbytes: int,
        report_seconds: float,
        weights: NDArray[Any],
        layers: NDArray[Any],
        positions: NDArray[Any],
        function: Guarded,
        proofs: Guarded,
        connections: Guarded,
        residency: tuple[shared.Condition, Structure, NDArray[Any], NDArray[Any]],
        uses: tuple[
            Structure,
            NDArray[Any],
            NDArray[Any],
            NDArray[Any],
            NDArray[Any],
            NDArray[Any],
            float,
            float,
        ],
        /,
    ) -> FastPath: ...
    def serve(
        self,
        fd: int,
        client: shared.ClientState,
        address: str,
        leaves_client_core: bool,
        idle_seconds: float,
        receive_seconds: float,
        send_seconds: float,
        /,
    ) -> bytes | None: ...
