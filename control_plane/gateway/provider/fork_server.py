"""Starts functions by fork, from a server that has imported their code: `functions.host.fork_server`."""

import asyncio
import json
import logging
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Self

from functions.host.fork_server import MAX_MESSAGE_BYTES, ROOM_VARIABLE
from functions.host.memory import memory_sizes

READY_SECONDS = 30.0
ANSWER_SECONDS = 10.0
END_SECONDS = 5.0
_TRIES = 2
RETRY_SECONDS = 60.0
"""For so long after a server could not be started, none is tried."""
_OWN_ENVIRONMENT = {
    # The library that NumPy imports starts no threads. The functions' own kernel does not use it.
    "OPENBLAS_NUM_THREADS": "1",
    ROOM_VARIABLE: "." * 1024,
}

_logger = logging.getLogger(__name__)


class ForkServerError(Exception):
    """A process cannot be started by fork at the moment."""


class ForkedProcess:
    """A process that a server has forked. It is used as an `asyncio.subprocess.Process` is."""

    def __init__(self, pid: int, server: "ForkServer", stdin: int, stdout: asyncio.StreamReader) -> None:
        self.pid = pid
        self.stdout = stdout
        self.returncode: int | None = None
        """The exit code, negative for a signal; None while the process runs."""
        self._ended = asyncio.create_task(self._observe(server, stdin))

    async def wait(self) -> int:
        """Wait for the end of the process; returns the exit code."""
        return await asyncio.shield(self._ended)

    def send_signal(self, number: int) -> None:
        """Send a signal, if the process has not ended."""
        if self.returncode is None:
            # Its id is not used again before the server was told to wait for it.
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM, if the process has not ended."""
        self.send_signal(signal.SIGTERM)

    async def _observe(self, server: "ForkServer", stdin: int) -> int:
        try:
            await _until_end(self.pid)
            self.returncode = await server.wait(self.pid)
        finally:
            os.close(stdin)
        return self.returncode


class ForkServer:
    """One server, and the processes that it has forked, which end when it does."""

    def __init__(
        self, process: asyncio.subprocess.Process, channel: socket.socket, environment: Mapping[str, str]
    ) -> None:
        self.environment = environment
        self._process = process
        self._channel = channel
        self._one_request = asyncio.Lock()
        self._running = 0
        self._retired = False

    @classmethod
    async def start(cls, command: Sequence[str], environment: Mapping[str, str]) -> Self:
        """Start a server; returns when it has imported everything. Raises ForkServerError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    env={**environment, **_OWN_ENVIRONMENT},
                    stdin=theirs.fileno(),
                    stdout=asyncio.subprocess.DEVNULL,
                    start_new_session=True,
                )
            except BaseException as error:
                ours.close()
                if isinstance(error, OSError):
                    raise ForkServerError(f"the functions' fork server cannot be started: {error}") from error
                raise
        ours.setblocking(False)
        server = cls(process, ours, environment)
        try:
            await server._receive(READY_SECONDS)
        except BaseException:
            await server.close()
            raise
        return server

    @property
    def alive(self) -> bool:
        return self._process.returncode is None and self._channel.fileno() >= 0

    @property
    def memory_bytes(self) -> int:
        """The server's proportional set size: what it shares with its processes counts in parts."""
        with suppress(OSError):
            return memory_sizes(self._process.pid).get("Pss", 0)
        return 0

    async def fork(
        self, title: str, environment: Mapping[str, str], listener: socket.socket
    ) -> ForkedProcess | None:
        """Start a process, which inherits `listener`; None if the server has ended, or has old code.

        Raises ForkServerError for an environment that is too large, OSError if the system has no room.
        """
        forking = asyncio.create_task(self._fork(title, environment, listener))
        try:
            return await asyncio.shield(forking)
        except asyncio.CancelledError:
            # Nobody else knows of the process.
            with suppress(ForkServerError, OSError):
                if process := await forking:
                    process.send_signal(signal.SIGKILL)
                    await process.wait()
            raise

    async def wait(self, pid: int) -> int:
        """The exit code of a process that has ended; that of SIGKILL if it ended with the server."""
        self._running -= 1
        try:
            code = int((await self._ask({"wait": pid}))["returncode"])
        except ForkServerError:
            code = -signal.SIGKILL
        await self._close_if_unused()
        return code

    async def retire(self) -> None:
        """Fork no more, and end with the last process."""
        self._retired = True
        await self._close_if_unused()

    async def close(self) -> None:
        """End the server, and with it its processes."""
        # A request that waits for its answer would not see that the channel is closed.
        async with self._one_request:
            self._channel.close()
        await self._end()

    async def _close_if_unused(self) -> None:
        if not self._retired:
            return
        # Not in the midst of a request, either: it may fork another process.
        async with self._one_request:
            if self._running:
                return
            self._channel.close()
        await self._end()

    async def _end(self) -> None:
        """Wait for the end of the server, whose channel is closed."""
        try:
            async with asyncio.timeout(END_SECONDS):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def _fork(
        self, title: str, environment: Mapping[str, str], listener: socket.socket
    ) -> ForkedProcess | None:
        request = {"run": {"title": title, "environment": dict(environment)}}
        their_stdin, stdin = os.pipe()
        stdout, their_stdout = os.pipe()
        answer = {}
        try:
            answer = await self._ask(request, [their_stdin, their_stdout, listener.fileno()])
        except ForkServerError:
            if self.alive:
                raise
        finally:
            os.close(their_stdin)
            os.close(their_stdout)
            if "pid" not in answer:
                os.close(stdin)
                os.close(stdout)
        if "error" in answer:
            raise OSError(answer["error"])
        if "pid" not in answer:
            return None
        self._running += 1
        return ForkedProcess(answer["pid"], self, stdin, await _reader(stdout))

    async def _ask(self, request: object, files: Sequence[int] = ()) -> dict[str, Any]:
        message = json.dumps(request).encode()
        if len(message) > MAX_MESSAGE_BYTES:
            raise ForkServerError(f"an environment of {len(message)} bytes is too large to be sent")
        async with self._one_request:
            try:
                socket.send_fds(self._channel, [message], files)
            except OSError as error:
                self._give_up()
                raise ForkServerError(f"the functions' fork server has ended: {error}") from error
            return await self._receive(ANSWER_SECONDS)

    async def _receive(self, seconds: float) -> dict[str, Any]:
        """The next message. Without one, the server is of no use any more, and is killed."""
        loop = asyncio.get_running_loop()
        problem = "has ended"
        try:
            async with asyncio.timeout(seconds):
                if message := await loop.sock_recv(self._channel, MAX_MESSAGE_BYTES):
                    answer: dict[str, Any] = json.loads(message)
                    return answer
        except TimeoutError:
            problem = f"has not answered for {seconds:g} s"
        except (OSError, ValueError) as error:
            problem = f"has failed: {error}"
        self._give_up()
        raise ForkServerError(f"the functions' fork server {problem}")

    def _give_up(self) -> None:
        self._channel.close()
        with suppress(ProcessLookupError):
            self._process.kill()


class ForkServers:
    """The server of the present code and settings, and those before it whose processes still run.

    Args:
        command: runs a server.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._servers: list[ForkServer] = []
        self._one_start = asyncio.Lock()
        self._retry_at = 0.0

    def memory_bytes(self) -> int:
        """The memory of all servers."""
        return sum(server.memory_bytes for server in self._servers if server.alive)

    async def fork(
        self, own: Mapping[str, str], title: str, environment: Mapping[str, str], listener: socket.socket
    ) -> ForkedProcess:
        """Start a process by the server whose own environment is `own`, which is started if there is none.

        Raises ForkServerError, and OSError if the system has no room for a process.
        """
        server = None
        for _ in range(_TRIES):
            async with self._one_start:
                server = await self._server(own, instead_of=server)
            if process := await server.fork(title, environment, listener):
                return process
        raise ForkServerError(f"{_TRIES} fork servers in a row have ended, or have old code")

    async def close(self) -> None:
        """End all servers, and the processes that still run."""
        async with self._one_start:
            await asyncio.gather(*(server.close() for server in self._servers))
            self._servers.clear()

    async def _server(self, own: Mapping[str, str], instead_of: ForkServer | None = None) -> ForkServer:
        """The newest server, or another one if it has ended, is outdated, or has other settings."""
        for server in [server for server in self._servers if not server.alive]:
            self._servers.remove(server)
            await server.close()
        if self._servers:
            newest = self._servers[-1]
            if newest is not instead_of and newest.environment == own:
                return newest
            await newest.retire()
        loop = asyncio.get_running_loop()
        if loop.time() < self._retry_at:
            raise ForkServerError("no fork server could be started a moment ago")
        try:
            self._servers.append(await ForkServer.start(self._command, own))
        except ForkServerError as error:
            self._retry_at = loop.time() + RETRY_SECONDS
            _logger.warning("functions are started as programs, which takes longer: %s", error)
            raise
        return self._servers[-1]


async def _reader(pipe: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, os.fdopen(pipe, "rb", 0))
    return reader


async def _until_end(pid: int) -> None:
    """Wait until a process has ended. It may be a zombie then."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return  # Its server has ended, too, so that the system has waited for it.
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
