"""One process of a function: how it starts, the calls in flight, and how it ends."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Self

import aiohttp
import psutil

from control_plane.faas.types import FunctionUsage
from control_plane.gateway.provider.forking.forked_process import ForkedProcess
from control_plane.gateway.provider.liveness import until_it_hangs
from control_plane.gateway.provider.log import FunctionLog
from functions.contract.process import LISTEN_FD_VARIABLE, READY_PATH

_BACKLOG = 1024
_FIRST_READY_POLL_S = 0.001
_READY_POLL_S = 0.02
"""Pauses between probes grow up to this: a forked process is ready after milliseconds."""
_LAST_LINES_S = 1.0
_MAX_LINE_BYTES = 16384
_MAX_LINES_PER_CHUNK = 256
_OUTPUT_BYTES_PER_S = 4 << 20
"""A function that writes more waits for the gateway: a flood of output must not take the gateway's time."""
_MILLICORES_PER_PERCENT = 10

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Timeouts:
    """Deadlines in seconds: to become ready, to answer one call, and to exit after SIGTERM.

    After SIGTERM, an expert function takes up to 10 s to finish calls that did not come through the gateway.
    """

    start: float = 60.0
    call: float = 60.0
    stop: float = 15.0


DEFAULT_TIMEOUTS = Timeouts()

Child = asyncio.subprocess.Process | ForkedProcess
"""A process in a process group of its own, with a pipe to its stdin and one from its stdout and stderr."""


class FunctionProcess:
    """A function's process, from its start to its end.

    The provider binds the socket before it starts the process: the port is known without a race, calls that
    arrive while the process starts wait in the backlog, and when it dies the kernel refuses them. The process
    exits when its stdin reaches EOF, which happens however the gateway ends, even when it is killed.
    """

    def __init__(self, process: Child, name: str, port: int, log: FunctionLog) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._port = port
        self.last_used = asyncio.get_running_loop().time()
        self.calls = 0
        self._process = process
        self._instance = f"{name}-{process.pid}"
        self._log = log
        self._no_calls = asyncio.Event()
        self._no_calls.set()
        self._called = asyncio.Event()
        self._meter: psutil.Process | None = None
        self.hangs = False
        """Whether it was killed because it did not answer."""
        self._ended = asyncio.create_task(self._observe())
        self._watched = asyncio.create_task(self._watch())

    @classmethod
    async def spawn(
        cls, start: Callable[[socket.socket], Awaitable[Child]], name: str, log: FunctionLog
    ) -> Self:
        """Have `start` start a process that inherits the listening socket. Raises what `start` raises."""
        with socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG) as listener:
            return cls(await start(listener), name, listener.getsockname()[1], log)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs, and does not hang."""
        return self._process.returncode is None and not self.hangs

    @property
    def last_words(self) -> str:
        """How it ended, and its last line of output, for an error message."""
        line = self._log.last_line(self._instance)
        return self._end + (f": {line}" if line else "")

    async def wait_ready(self, session: aiohttp.ClientSession) -> bool:
        """Wait until it answers `/_/ready` with 200; False if it exits before."""
        pause = _FIRST_READY_POLL_S
        while self.alive:
            try:
                async with session.get(self.url + READY_PATH) as answer:
                    if answer.status == 200:
                        self.last_used = asyncio.get_running_loop().time()
                        return True
                await asyncio.sleep(pause)
            except aiohttp.ClientError:
                await asyncio.wait({self._ended}, timeout=pause)
            pause = min(1.5 * pause, _READY_POLL_S)
        await self.wait_ended(_LAST_LINES_S)
        return False

    async def wait_ended(self, timeout: float | None = None) -> None:
        """Wait until it has exited and its last lines are in the log; at most `timeout` seconds."""
        await asyncio.wait({self._ended}, timeout=timeout)

    @contextmanager
    def call(self) -> Iterator[None]:
        """Count a call: the process is in use, and `stop` waits until the call has ended."""
        self.calls += 1
        self._no_calls.clear()
        self._called.set()
        try:
            yield
        finally:
            self.calls -= 1
            self.last_used = asyncio.get_running_loop().time()
            if not self.calls:
                self._no_calls.set()
                self._called.clear()

    async def stop(self, timeouts: Timeouts) -> None:
        """Wait for the calls in flight, then send SIGTERM, then SIGKILL; returns when it has exited."""
        try:
            async with asyncio.timeout(timeouts.call):
                await self._no_calls.wait()
        except TimeoutError:
            _logger.warning("%s is stopped with %d calls in flight", self._instance, self.calls)
        if self.alive:
            self._process.terminate()
        await self.wait_ended(timeouts.stop)
        await self.kill(timeouts)

    async def kill(self, timeouts: Timeouts) -> None:
        """Send SIGKILL to the process and its children, if it has not exited."""
        if self._ended.done():
            return
        self._kill_group()
        await self.wait_ended(timeouts.stop)

    def usage(self) -> FunctionUsage | None:
        """CPU since the last call of this method, and resident memory; None if the process has ended."""
        if not self.alive:
            return None
        try:
            self._meter = self._meter or psutil.Process(self._process.pid)
            return FunctionUsage(
                cpu=self._meter.cpu_percent() * _MILLICORES_PER_PERCENT,
                total_memory_bytes=self._meter.memory_info().rss,
            )
        except psutil.Error:
            return None

    async def _observe(self) -> None:
        if self._process.stdout is not None:
            await self._read_lines(self._process.stdout)
        code = await self._process.wait()
        level = logging.INFO if code else logging.DEBUG
        _logger.log(level, "%s ended: %s", self._instance, self._end)

    async def _watch(self) -> None:
        """End the process if it hangs. SIGTERM would have no effect on one that is stopped."""
        hangs = asyncio.create_task(until_it_hangs(self.pid, self._port, self._called))
        try:
            await asyncio.wait({hangs, self._ended}, return_when=asyncio.FIRST_COMPLETED)
            if hangs.done() and not self._ended.done():
                hangs.result()
                _logger.warning("%s does not answer: it is killed", self._instance)
                self.hangs = True
                self._kill_group()
        finally:
            hangs.cancel()

    def _kill_group(self) -> None:
        # While `_ended` is pending, a process of the group is alive, so the group's id was not reused.
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    @property
    def _end(self) -> str:
        code = self._process.returncode
        if self.hangs:
            return "it did not answer and was killed"
        if code is None or code >= 0:
            return f"exit code {code}"
        reason = ", perhaps for lack of memory" if -code == signal.SIGKILL else ""
        return f"killed (signal {-code}){reason}"

    async def _read_lines(self, stdout: asyncio.StreamReader) -> None:
        unfinished = b""
        while chunk := await stdout.read(_MAX_LINE_BYTES):
            *lines, unfinished = (unfinished + chunk).split(b"\n")
            for line in lines[-_MAX_LINES_PER_CHUNK:]:
                self._write_log(line)
            unfinished = unfinished[:_MAX_LINE_BYTES]
            if len(chunk) == _MAX_LINE_BYTES:
                await asyncio.sleep(_MAX_LINE_BYTES / _OUTPUT_BYTES_PER_S)
        if unfinished:
            self._write_log(unfinished)

    def _write_log(self, line: bytes) -> None:
        self._log.append(self._instance, line[:_MAX_LINE_BYTES].decode(errors="replace").rstrip("\r"))


async def start_program(
    command: Sequence[str], environment: Mapping[str, str], listener: socket.socket
) -> Child:
    """Start a program, which inherits `listener`.

    Raises OSError if there is no such program, or a process cannot be created.
    """
    return await asyncio.create_subprocess_exec(
        *command,
        env={**environment, LISTEN_FD_VARIABLE: str(listener.fileno())},
        pass_fds=(listener.fileno(),),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        # Ctrl-C must reach the gateway alone, which then ends its functions in order.
        start_new_session=True,
    )
