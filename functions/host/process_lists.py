"""What lists of processes show of this process, such as those of ps and top."""

import ctypes
from collections.abc import Mapping
from pathlib import Path

_PLACES = slice(47, 51)
"""In /proc/self/stat: the addresses at which the command line and the environment begin and end."""


def show_as(title: str, environment: Mapping[str, str]) -> None:
    """Show `title` in place of the command line, and `environment`; both are cut off if they are too long.

    The kernel shows the memory in which it left both when the process was started: nothing must use that
    environment any more. Nothing happens where /proc is missing.
    """
    try:
        text = Path("/proc/self/stat").read_text()
    except OSError:
        return
    # The name comes second, in parentheses, and may contain spaces and parentheses.
    places = ["", "", *text.rpartition(")")[2].split()][_PLACES]
    line_start, line_end, variables_start, variables_end = map(int, places)
    variables = "".join(f"{name}={value}\0" for name, value in environment.items())
    _overwrite(variables_start, variables_end, variables.encode())
    _overwrite(line_start, line_end, title.encode())
    if line_end > line_start:
        # With another last byte than zero, what is shown ends with the title and not with many zeros.
        ctypes.memset(line_end - 1, 1, 1)


def _overwrite(start: int, end: int, content: bytes) -> None:
    if (room := end - start - 1) > 0:
        ctypes.memmove(start, content[: room - 1].ljust(room + 1, b"\0"), room + 1)
