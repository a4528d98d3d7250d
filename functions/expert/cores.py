"""Keeps a connection's thread off the core that its client sends from.

Linux wakes a thread on the waker's core when it sees no idle one, and in a virtual machine it takes a halted
core for one that the host has taken away. There the thread would interrupt whoever has just sent to it, while
another core idles: a tenth of a token's time, on two cores. But several functions that are called at once
would crowd on the cores that are left: two of them took a quarter longer on one core.
"""

import contextlib
import os
import socket


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
