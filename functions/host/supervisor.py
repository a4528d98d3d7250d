"""Ends a process together with the one that started it."""

import signal
import sys

from functions.host.c_library import C_LIBRARY

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends.

    It does so also while this process is stopped and cannot see that its standard input has ended. Does
    nothing on other systems than Linux.
    """
    if sys.platform == "linux":
        C_LIBRARY.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
