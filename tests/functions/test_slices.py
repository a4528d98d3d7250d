"""A function's threads take short slices, where Linux knows them."""

import ctypes
import platform
import struct
import threading
from collections.abc import Callable

import pytest

from functions.host import threads as slices
from functions.host.threads import SLICE_NANOSECONDS, take_short_slices

GET = {"x86_64": 315, "aarch64": 275}
"""The number of sched_getattr(2)."""


def slice_of_this_thread() -> int:
    """In nanoseconds; 0 where Linux does not say."""
    attributes = ctypes.create_string_buffer(56)
    ctypes.CDLL(None).syscall(ctypes.c_long(GET[platform.machine()]), 0, attributes, 56, 0)
    return int(struct.unpack("=IIQiIQQQII", attributes.raw)[5])


def in_a_thread(do: Callable[[], None]) -> list[int]:
    """The slices of a thread that does it, before and after, and of one that it has started then."""
    seen: list[int] = []

    def run() -> None:
        seen.append(slice_of_this_thread())
        do()
        seen.append(slice_of_this_thread())
        child = threading.Thread(target=lambda: seen.append(slice_of_this_thread()))
        child.start()
        child.join()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return seen


@pytest.mark.skipif(platform.machine() not in GET, reason="the test knows no number of the system call")
def test_threads_take_short_slices() -> None:
    usual = slice_of_this_thread()
    if not usual:
        pytest.skip("this Linux has no slices of threads")
    assert in_a_thread(take_short_slices) == [usual, SLICE_NANOSECONDS, SLICE_NANOSECONDS]
    assert slice_of_this_thread() == usual


def test_it_does_nothing_on_other_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices.platform, "machine", lambda: "abacus")
    libraries: list[object] = []
    monkeypatch.setattr(slices.ctypes, "CDLL", libraries.append)
    take_short_slices()
    assert libraries == []
