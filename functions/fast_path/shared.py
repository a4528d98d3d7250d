"""State that Python and C use in turn, each under the condition of the object that owns it.

csrc/shared.h declares the same fields in the same order. Without the extension, only Python uses them.
"""

import threading
from collections.abc import Callable
from ctypes import Structure, c_char, c_double, c_int64
from enum import IntEnum
from types import TracebackType
from typing import Protocol, TypeVar

try:
    from . import _fast_path
except ImportError:
    _fast_path = None  # type: ignore[assignment]

PROOF_NBYTES = 64
"""The most bytes of a proof, with a zero at its end."""

Found = TypeVar("Found")


class Condition(Protocol):
    """What is used of `threading.Condition`. It is not recursive."""

    def __enter__(self) -> bool: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...
    def wait(self, timeout: float | None = None, /) -> bool: ...
    def wait_for(self, predicate: Callable[[], Found], timeout: float | None = None, /) -> Found: ...
    def notify_all(self) -> None: ...


def condition() -> Condition:
    """A condition, which C can take, too, if the extension is there."""
    return _fast_path.Condition() if _fast_path else threading.Condition(threading.Lock())


def fast_path_type() -> "type[_fast_path.FastPath] | None":
    """What answers plain calls in C; None without the extension."""
    return _fast_path.FastPath if _fast_path else None


class Phase(IntEnum):
    """What a connection does now."""

    WAITING = 0
    """It waits for its client's bytes."""
    COMPUTING = 1
    SENDING = 2
    """Its client has to read an answer."""
    LEAVING = 3
    """It had to give way to others; its thread has not ended yet."""


class ClientState(Structure):
    """One connection of a server."""

    phase: int
    since: int
    """The server's turn in which the phase began: the lower, the longer ago."""
    nbytes: int
    """Bytes of memory for the body of its call."""
    core: int
    """The core from which its client last sent; -1 while that does not matter."""
    reported: int
    """The version of the residency that was last reported over it; -1 for none."""
    reported_at: float
    """When that was, by time.monotonic()."""

    _fields_ = [
        ("phase", c_int64),
        ("since", c_int64),
        ("nbytes", c_int64),
        ("core", c_int64),
        ("reported", c_int64),
        ("reported_at", c_double),
    ]

    @classmethod
    def new(cls) -> "ClientState":
        """A connection that is not open yet."""
        return cls(core=-1, reported=-1)


class ConnectionsState(Structure):
    """The connections of a server together."""

    turns: int
    """How often a connection's phase has begun."""
    nbytes: int
    """Bytes of memory for the bodies of all their calls."""
    most_nbytes: int
    """The most of those."""
    stopping: int
    """1 once the server closes a connection after its next answer."""

    _fields_ = [("turns", c_int64), ("nbytes", c_int64), ("most_nbytes", c_int64), ("stopping", c_int64)]


class FunctionState(Structure):
    """The calls of a function's process: counts since its start, and those in flight."""

    invocations: int
    rows: int
    seconds: float
    cold_experts: int
    refused: int
    in_flight: int
    max_in_flight: int
    used_at: float
    """Time of the last start or end of an invocation, or of the function's start, by time.monotonic()."""

    _fields_ = [
        ("invocations", c_int64),
        ("rows", c_int64),
        ("seconds", c_double),
        ("cold_experts", c_int64),
        ("refused", c_int64),
        ("in_flight", c_int64),
        ("max_in_flight", c_int64),
        ("used_at", c_double),
    ]


class ProofsState(Structure):
    """What caller and function send to each other; an empty proof of the caller lets everybody call."""

    caller: bytes
    function: bytes

    _fields_ = [("caller", c_char * PROOF_NBYTES), ("function", c_char * PROOF_NBYTES)]


class ResidencyState(Structure):
    """The experts in memory, as far as calls in C have to know."""

    in_call: int
    """1 while a call uses the experts."""
    wanted: int
    """1 if somebody waits for the end of that call."""
    is_plain: int
    """1 if a call changes nothing but the estimates of its experts' next use."""
    version: int
    """Counts the changes of what a report says, without the process's own memory."""
    held: int
    """How many experts a call in C uses now."""

    _fields_ = [
        ("in_call", c_int64),
        ("wanted", c_int64),
        ("is_plain", c_int64),
        ("version", c_int64),
        ("held", c_int64),
    ]


class UsesState(Structure):
    """The last call that counts in the estimates of experts' next use."""

    calls: int
    """How many there were."""
    layer: int
    """The layer of the last one, counted from the block's first."""

    _fields_ = [("calls", c_int64), ("layer", c_int64)]
