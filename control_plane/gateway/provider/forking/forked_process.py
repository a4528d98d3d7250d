"""A process that a fork server has started."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress

from control_plane.readable import until_readable


class ForkedProcess:
    """A process that a server has forked. It is used as an `asyncio.subprocess.Process` is."""

    def __init__(
        self,
        pid: int,
        pidfd: int,
        stdin: int,
        stdout: asyncio.StreamReader,
        reap: Callable[[int], Awaitable[int]],
    ) -> None:
        """Takes over the files `pidfd` and `stdin`. `reap` returns the exit code of a process that has
        ended, whose id is not used again before."""
        self.pid = pid
        self.stdout = stdout
        self.returncode: int | None = None
        """The exit code, negative for a signal; None while the process runs."""
        self._ended = asyncio.create_task(self._observe(pidfd, stdin, reap))

    async def wait(self) -> int:
        """Wait for the end of the process; returns the exit code."""
        return await asyncio.shield(self._ended)

    def send_signal(self, number: int) -> None:
        """Send a signal, if the process has not ended."""
        if self.returncode is None:
            # The kernel gives the id to no other process before the server has reaped this one.
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM, if the process has not ended."""
        self.send_signal(signal.SIGTERM)

    async def _observe(self, pidfd: int, stdin: int, reap: Callable[[int], Awaitable[int]]) -> int:
        try:
            try:
                await until_readable(pidfd)
            finally:
                os.close(pidfd)
            self.returncode = await reap(self.pid)
        finally:
            os.close(stdin)
        return self.returncode
