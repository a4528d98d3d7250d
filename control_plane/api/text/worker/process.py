"""The process that encodes prompts, as the control plane sees it: it starts, answers, and can be ended."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from control_plane.api.text.worker.messages import LENGTH_BYTES, MAX_ANSWER_BYTES, Answer, Request, Setup

START_SECONDS = 60.0
"""The longest that a process may take to load a tokenizer."""
STOP_SECONDS = 2.0
"""The longest that a process may take to end after its input or its output has."""
_PACKAGES = str(Path(__file__).parents[3])
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "COVERAGE_PROCESS_CONFIG")
"""What the process gets of the environment, which may also hold passwords."""

_decoder: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


class WorkerEnded(Exception):
    """The process has ended by itself, or broke the protocol."""


class WorkerProcess:
    """A process that answers one request at a time. It starts with the first one, and again after its end."""

    def __init__(self, setup: Callable[[], Setup]) -> None:
        """`setup` makes the first message for each start, so that nobody keeps it in memory."""
        self._setup = setup
        self._process: asyncio.subprocess.Process | None = None
        self._busy = False

    @property
    def pid(self) -> int | None:
        """The id of the process; None when there is none."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self) -> None:
        """Start the process and wait until it is ready.

        Raises `WorkerEnded` if it ends, TimeoutError if it takes too long, OSError if there can be none.
        """
        body = await asyncio.to_thread(lambda: msgspec.msgpack.encode(self._setup()))
        environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "control_plane.api.text.worker"),
            env={**environment, "PYTHONPATH": _PACKAGES, "TOKENIZERS_PARALLELISM": "false"},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # A tokenizer's panics print what they were given.
            stderr=asyncio.subprocess.DEVNULL,
            # Ctrl-C must reach the control plane alone.
            start_new_session=True,
        )
        await self._exchange(self._process, body, START_SECONDS)

    async def ask(self, request: Request, seconds: float) -> Answer:
        """The answer to a request.

        Raises TimeoutError when it takes too long, `WorkerEnded` when the process ends, and OSError when it
        cannot be started. The process has then been ended.
        """
        if self.pid is None:
            await self.start()
        assert self._process is not None
        return await self._exchange(self._process, msgspec.msgpack.encode(request), seconds)

    async def stop(self) -> None:
        """End the process, and wait until it has exited."""
        if self._process and self._process.stdin:
            self._process.stdin.close()
        await self._end(0 if self._busy else STOP_SECONDS)

    async def _exchange(self, process: asyncio.subprocess.Process, body: bytes, seconds: float) -> Answer:
        assert process.stdin is not None
        assert process.stdout is not None
        self._busy = True
        try:
            async with asyncio.timeout(seconds):
                process.stdin.write(len(body).to_bytes(LENGTH_BYTES, "little") + body)
                await process.stdin.drain()
                length = int.from_bytes(await process.stdout.readexactly(LENGTH_BYTES), "little")
                if length > MAX_ANSWER_BYTES:
                    raise WorkerEnded(f"it answered with {length} bytes")
                return _decoder.decode(await process.stdout.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError, msgspec.DecodeError) as error:
            await asyncio.shield(self._end(STOP_SECONDS))
            raise WorkerEnded(f"exit code {process.returncode}") from error
        except BaseException:
            # Also when it is cancelled: the answer would be taken for that of the next request.
            await asyncio.shield(self._end(0))
            raise
        finally:
            self._busy = False

    async def _end(self, seconds: float) -> None:
        """Wait until the process has exited. After some seconds, kill it."""
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await process.wait()
        if process.returncode is None:
            # Not Process.kill(), which would take the exit status from asyncio.
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        await process.wait()
