"""Where and when a function's threads run.

Keeps a connection's thread off the core that its client sends from.

Linux wakes a thread on the waker's core when it sees no idle one, and in a virtual machine it takes a halted
core for one that the host has taken away. There the thread would interrupt whoever has just sent to it, while
another core idles: a tenth of a token's time, on two cores. But several functions that are called at once
would crowd on the cores that are left: two of them took a quarter longer on one core.

Has Linux run a function's threads as soon as they have something to do.

The control plane keeps every core busy while functions work. A thread that wakes, to start a read or to take
in a message, would wait there until somebody's time slice ends: a millisecond and more, in which the disk
idles. Since Linux 6.12 a thread that takes shorter slices goes first. It gets no more time for it.
"""

import contextlib
import ctypes
import os
import platform
import socket
import struct
import sys


class ClientCore:
    """Of one connection; used by the thread that serves it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        known = hasattr(socket, "SO_INCOMING_CPU") and hasattr(os, "sched_setaffinity")
        self._cores = os.sched_getaffinity(0) if known else set()
        self._client = -1

    def keep_off(self) -> None:
        """After something has come: leave the core on which it did, if there is another one."""
        if len(self._cores) < 2:
            return
        core = self._connection.getsockopt(socket.SOL_SOCKET, socket.SO_INCOMING_CPU)
        if core != self._client:
            self._client = core
            # It only takes longer where this is not allowed.
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, self._cores - {core})


SLICE_NANOSECONDS = 100_000
"""The least that Linux knows."""
_SYSTEM_CALLS = {"x86_64": 314, "aarch64": 274}
"""The number of sched_setattr(2), for which the C library has no function."""


def take_short_slices() -> None:
    """For this thread and those that it starts; does nothing where that is not known or not allowed."""
    number = _SYSTEM_CALLS.get(platform.machine()) if sys.platform == "linux" else None
    if number is None:
        return
    # struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period, and bounds of use.
    attributes = struct.pack("=IIQiIQQQII", 56, 0, 0, 0, 0, SLICE_NANOSECONDS, 0, 0, 0, 0)
    ctypes.CDLL(None).syscall(ctypes.c_long(number), 0, attributes, 0)
