"""Ends processes as faasd ends containers: it removes the network first, so that callers notice nothing."""

import asyncio
import ctypes
import logging
import os
import re
import signal
import socket
import struct
from contextlib import suppress
from pathlib import Path

from functions.host.c_library import C_LIBRARY

SILENT_SECONDS = 30.0
"""How long callers of a process that has vanished get neither an answer nor a reset."""

_PIDFD_GETFD = 438
_SO_ATTACH_FILTER = 26
_DROP_ALL = struct.pack("HBBI", 6, 0, 0, 0)
"""A socket filter of one instruction: return 0, the number of bytes to keep of each packet."""
_CAUGHT = re.compile(r"^SigCgt:\s*([0-9a-f]+)$", re.MULTILINE)

_logger = logging.getLogger(__name__)


def handles_sigterm(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM; without one, process 1 of a container ignores it."""
    with suppress(OSError):
        if caught := _CAUGHT.search(Path(f"/proc/{pid}/status").read_text()):
            return bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)
    return True


class VanishedSockets:
    """The sockets of processes that have vanished: they receive nothing, and outlive their process."""

    def __init__(self) -> None:
        self._held: set[socket.socket] = set()

    def take(self, pid: int) -> None:
        """Cut all connections of a function's process, and stop it; it is then to be killed."""
        try:
            # A process that runs could accept further connections meanwhile.
            os.killpg(pid, signal.SIGSTOP)
            taken = _sockets(pid)
        except OSError as error:
            _logger.warning("the callers of process %d will notice its end: %s", pid, error)
            return
        program = ctypes.create_string_buffer(_DROP_ALL)
        for each in taken:
            each.setsockopt(
                socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", 1, ctypes.addressof(program))
            )
        self._held.update(taken)
        asyncio.get_running_loop().call_later(SILENT_SECONDS, self._release, taken)

    def close(self) -> None:
        """Close all sockets now."""
        self._release(list(self._held))

    def _release(self, sockets: list[socket.socket]) -> None:
        for each in sockets:
            each.close()
        self._held.difference_update(sockets)


def _sockets(pid: int) -> list[socket.socket]:
    """Duplicates of all TCP sockets of a descendant. Raises OSError."""
    pidfd = os.pidfd_open(pid)
    try:
        folder = Path(f"/proc/{pid}/fd")
        numbers = [int(path.name) for path in folder.iterdir() if os.readlink(path).startswith("socket:")]
        return [socket.socket(fileno=_duplicate(pidfd, number)) for number in numbers]
    finally:
        os.close(pidfd)


def _duplicate(pidfd: int, number: int) -> int:
    """pidfd_getfd(2), which a process may use on its descendants."""
    duplicate: int = C_LIBRARY.syscall(_PIDFD_GETFD, pidfd, number, 0)
    if duplicate < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return duplicate
