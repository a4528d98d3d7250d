"""Places a function's threads: on which core they run, and how soon after they wake."""

import contextlib
import ctypes
import os
import platform
import socket
import struct
import sys

from functions.host.c_library import C_LIBRARY

SLICE_NANOSECONDS = 100_000
"""The shortest time slice that Linux accepts."""
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
"""The number of the system call sched_setattr(2), for which the C library has no function."""


class ClientCore:
    """Keeps a connection's thread off the core that its client sends from.

    Linux wakes a thread on the waker's core when it sees no idle one, and in a virtual machine it takes a
    halted core for one that the host has taken away. The thread then interrupts its client while another core
    is idle, which costs a tenth of a token's time on two cores. It pays only where each of the functions that
    are called at once can have another core: two of them on one core took a quarter longer.
    """

    def __init__(self, connection: socket.socket) -> None:
        """Only the thread that serves `connection` may create and use this object."""
        self._connection = connection
        known = hasattr(socket, "SO_INCOMING_CPU") and hasattr(os, "sched_setaffinity")
        self._cores = os.sched_getaffinity(0) if known else set()
        self.client = -1
        """The core that the thread keeps off; -1 for none yet."""

    def keep_off(self) -> None:
        """Leave the core on which the last bytes arrived, if there is another one."""
        if len(self._cores) < 2:
            return
        core = self._connection.getsockopt(socket.SOL_SOCKET, socket.SO_INCOMING_CPU)
        if core != self.client:
            self.client = core
            # Where this is not allowed, calls are only slower.
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, self._cores - {core})


def take_short_slices() -> None:
    """Give this thread and those that it starts short time slices; does nothing where that is impossible.

    The control plane keeps every core busy while functions work. A function's thread that wakes, to start a
    read or to receive a message, would wait a millisecond or more for the end of another thread's slice; the
    disk is idle meanwhile. Since Linux 6.12 a thread with shorter slices goes first. It gets no more time.
    """
    number = _SCHED_SETATTR.get(platform.machine()) if sys.platform == "linux" else None
    if number is None:
        return
    # struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period, and bounds of use.
    attributes = struct.pack("=IIQiIQQQII", 56, 0, 0, 0, 0, SLICE_NANOSECONDS, 0, 0, 0, 0)
    C_LIBRARY.syscall(ctypes.c_long(number), 0, attributes, 0)
