"""What lists of processes show of a process, such as those of ps and top."""

import ctypes
from collections.abc import Mapping
from pathlib import Path

_PLACES = slice(47, 51)
"""In /proc/self/stat: the addresses at which the command line and the environment begin and end."""


class ProcessLists:
    """The memory in which the kernel left this process's command line and environment, which lists show.

    Processes that are forked from this one have it, too.
    """

    def __init__(self) -> None:
        """Find it; without /proc, nothing is ever shown in its place."""
        try:
            text = Path("/proc/self/stat").read_text()
        except OSError:
            text = ")" + " 0" * _PLACES.stop
        # The name comes second, in parentheses, and may contain spaces and parentheses.
        places = ["", "", *text.rpartition(")")[2].split()][_PLACES]
        self._line_start, self._line_end, self._variables_start, self._variables_end = map(int, places)

    def show(self, title: str, environment: Mapping[str, str]) -> None:
        """Show `title` in place of the command line, and `environment`; both are cut off if too long.

        Nothing must use the environment any more that the process was started with.
        """
        variables = "".join([f"{name}={value}\0" for name, value in environment.items()])
        _overwrite(self._variables_start, self._variables_end, variables.encode())
        # With another last byte than zero, what is shown ends with the title, and not with many zeros.
        _overwrite(self._line_start, self._line_end, title.encode(), last=b"\1")


def _overwrite(start: int, end: int, content: bytes, last: bytes = b"\0") -> None:
    if (room := end - start - 1) > 0:
        ctypes.memmove(start, content[: room - 1].ljust(room, b"\0") + last, room + 1)
