"""Starts functions by fork, from a server that has imported their code: `functions.host.fork_server`."""

import asyncio
import json
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any, Self

from control_plane.gateway.provider.forking.forked_process import ForkedProcess
from functions.host.fork_server import MAX_MESSAGE_BYTES, ROOM_VARIABLE
from functions.host.memory import memory_sizes

READY_SECONDS = 30.0
ANSWER_SECONDS = 10.0
END_SECONDS = 5.0
_OWN_ENVIRONMENT = {
    # The library that NumPy imports starts no threads. The functions' own kernel does not use it.
    "OPENBLAS_NUM_THREADS": "1",
    ROOM_VARIABLE: "." * 1024,
}


class ForkServerError(Exception):
    """A process cannot be started by fork at the moment."""


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
        self._answers = True

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
        """Whether it runs. It may hang, while the processes that it has forked do not."""
        return self._process.returncode is None and self._channel.fileno() >= 0

    @property
    def answers(self) -> bool:
        """Whether it can be asked for processes."""
        return self.alive and self._answers

    @property
    def memory_bytes(self) -> int:
        """The server's proportional set size: what it shares with its processes counts in parts."""
        with suppress(OSError):
            return memory_sizes(self._process.pid).get("Pss", 0)
        return 0

    async def fork(
        self, title: str, environment: Mapping[str, str], listener: socket.socket
    ) -> ForkedProcess | None:
        """Start a process, which inherits `listener`; None if the server has ended, hangs, or has old code.

        Raises ForkServerError for an environment that is too large, or if the system cannot watch the
        process; OSError if it has no room for one.
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
        """The exit code of a process that has ended; that of SIGKILL if the server cannot tell any more."""
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
        """Wait for the end of the server, whose channel is closed. One that hangs is killed at once."""
        if not self._answers:
            self._kill()
        try:
            async with asyncio.timeout(END_SECONDS):
                await self._process.wait()
        except TimeoutError:
            self._kill()
            await self._process.wait()

    async def _fork(
        self, title: str, environment: Mapping[str, str], listener: socket.socket
    ) -> ForkedProcess | None:
        request = {"run": {"title": title, "environment": dict(environment)}}
        with ExitStack() as theirs, ExitStack() as ours:
            their_stdin, stdin = _pipe(theirs, ours)
            stdout, their_stdout = _pipe(ours, theirs)
            try:
                answer = await self._ask(request, [their_stdin, their_stdout, listener.fileno()])
                if "pid" not in answer:
                    if "error" in answer:
                        raise OSError(answer["error"])
                    return None
                self._running += 1
                pidfd = await self._pidfd(answer["pid"])
            except ForkServerError:
                if self.answers:
                    raise
                return None
            ours.pop_all()
        return ForkedProcess(answer["pid"], pidfd, stdin, await _reader(stdout), self.wait)

    async def _pidfd(self, pid: int) -> int:
        """A file that can be read when the process has ended. Without one, it is killed: ForkServerError."""
        try:
            return os.pidfd_open(pid)
        except OSError as error:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            await self.wait(pid)
            raise ForkServerError(f"a function's process cannot be watched: {error}") from error

    async def _ask(self, request: object, files: Sequence[int] = ()) -> dict[str, Any]:
        message = json.dumps(request).encode()
        if len(message) > MAX_MESSAGE_BYTES:
            raise ForkServerError(f"an environment of {len(message)} bytes is too large to be sent")
        async with self._one_request:
            if not self._answers:
                raise ForkServerError("the functions' fork server does not answer")
            try:
                socket.send_fds(self._channel, [message], files)
            except OSError as error:
                self._give_up()
                raise ForkServerError(f"the functions' fork server has ended: {error}") from error
            return await self._receive(ANSWER_SECONDS)

    async def _receive(self, seconds: float) -> dict[str, Any]:
        """The next message. Raises ForkServerError if there is none; then no other is waited for."""
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
        """Ask nothing of it any more. It ends with its last process: those that run would end with it."""
        self._answers = False
        self._retired = True
        if not self._running:
            self._channel.close()
            self._kill()

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()


async def _reader(pipe: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, os.fdopen(pipe, "rb", 0))
    return reader


def _pipe(readers: ExitStack, writers: ExitStack) -> tuple[int, int]:
    """A pipe, each of whose ends its stack closes."""
    reader, writer = os.pipe()
    readers.callback(os.close, reader)
    writers.callback(os.close, writer)
    return reader, writer
