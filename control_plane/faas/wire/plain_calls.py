"""Sends the requests of a layer's calls together, and receives their answers, while Python's lock is free.

Only plain answers are read here: those of the one form that functions use when nothing is special. Everything
else is left to Python, with the bytes that have arrived, so that nothing is lost. The C extension
`_plain_calls` does the work. Without it, every answer is left to Python.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

from numpy.typing import NDArray

_extension: ModuleType | None
try:
    from control_plane.faas.wire import _plain_calls as _extension
except ImportError:
    _extension = None


class PlainAnswer(NamedTuple):
    """What a plain answer says besides its output."""

    instance: str
    address: str
    seconds: float
    cold_experts: int
    body_nbytes: int


def are_compiled() -> bool:
    """Whether there is the C extension, without which the functions here are not to be called."""
    return _extension is not None


def send(requests: Sequence[tuple[Any, ...]]) -> list[int]:
    """Send as much of each request as the network takes now; returns how many of its last bytes are left.

    A request is (socket, part, ...): the number of an idle connection's socket, and up to eight buffers. The
    result is -1, and nothing is sent, if the peer has closed the connection. Another failure shows when more
    is sent, or the answer read.
    """
    assert _extension is not None
    left: list[int] = _extension.send(requests)
    return left


def receive(seconds: float, calls: Sequence[tuple[int, bytes, NDArray[Any]]]) -> list[PlainAnswer | bytes]:
    """Wait until all calls are answered, one answer is not plain or breaks off, or for so many seconds.

    It takes what has arrived in any case, also if `seconds` are negative.

    A call is (socket, proof, output): what the function has to send to prove itself, empty if it has no
    secret, and the array [T, H] of float32, or uint16 for bfloat16, that its output is written to. The result
    has the bytes that have arrived, perhaps none, for each call whose answer is not complete or not plain.
    """
    assert _extension is not None
    return [
        answer if isinstance(answer, bytes) else PlainAnswer(*answer)
        for answer in _extension.receive(seconds, calls)
    ]
