"""Gives this process another name in lists of processes, such as those of ps and top."""

import ctypes
from pathlib import Path

_ARG_START = 47
_ARG_END = 48
"""Where the address of the command line is in /proc/self/stat, and its end: proc(5) counts from 1."""


def set_process_title(title: str) -> None:
    """Replace the command line by `title`, cut off where that has more bytes; nothing where /proc is missing.

    The kernel shows the memory in which it left the arguments. When that does not end with a zero byte, it
    shows what comes before the first one.
    """
    try:
        text = Path("/proc/self/stat").read_text()
    except OSError:
        return
    # The name comes second, in parentheses, and may contain spaces and parentheses.
    fields = ["", "", *text.rpartition(")")[2].split()]
    start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
    if (room := end - start - 1) > 0:
        ctypes.memmove(start, title.encode()[: room - 1].ljust(room, b"\0") + b" ", room + 1)
