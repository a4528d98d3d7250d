"""Runs llama.cpp's server with a checkpoint's weights in bf16."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from bench.support import processes
from bench.support.gguf.model import GgufModel
from bench.support.gguf.writer import write
from control_plane.errors import FaaSMoEError
from control_plane.partition.checkpoint.reader import Checkpoint

SEQUENCES = 32
"""Sequences computed at once, the same as the control plane's default maximum."""
POLL_SECONDS = 0.1
ENDING_SECONDS = 2.0
"""How long the process may take to end after its connections have."""


@asynccontextmanager
async def llama_cpp_server(
    program: str, checkpoint: Path, gguf: Path, threads: int, cache_tokens: int, start_seconds: float
) -> AsyncIterator[tuple[int, str]]:
    """Write the checkpoint to `gguf` and serve it. Yields the process id and the address.

    Raises `FaaSMoEError` if the server ends before it serves, or takes too long, and `ConfigError` without
    the package gguf.
    """
    await asyncio.to_thread(write, GgufModel.of_checkpoint(Checkpoint.open(checkpoint)), gguf)
    # llama.cpp would report a port of its choice only in its log.
    port = processes.free_port()
    options = {
        "--model": gguf,
        "--host": "127.0.0.1",
        "--port": port,
        "--threads": threads,
        "--parallel": SEQUENCES,
        # All sequences share one cache, as in the other strategies.
        "--ctx-size": cache_tokens,
        # No cache of earlier prompts: the other strategies have none.
        "--cache-ram": 0,
    }
    command = [program, "--kv-unified", *(str(part) for option in options.items() for part in option)]
    with tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        url = f"http://127.0.0.1:{port}"
        try:
            async with asyncio.timeout(start_seconds) as starting:
                await _wait_until_ready(process, url)
            yield process.pid, url
        except TimeoutError as error:
            if starting.expired():
                raise FaaSMoEError(f"llama.cpp's server was not ready within {start_seconds:g} s") from error
            raise
        except (FaaSMoEError, aiohttp.ClientError) as error:
            if await _ends(process):
                log.seek(0)
                raise FaaSMoEError(f"llama.cpp's server has ended: {_reason(log.read())}") from error
            raise
        finally:
            await processes.stop(process)


async def _wait_until_ready(process: asyncio.subprocess.Process, url: str) -> None:
    """Wait until the model is loaded. Raises `FaaSMoEError` if the process has ended."""
    async with aiohttp.ClientSession() as client:
        while process.returncode is None:
            try:
                async with client.get(f"{url}/health") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(POLL_SECONDS)
    raise FaaSMoEError("it does not serve")


async def _ends(process: asyncio.subprocess.Process) -> bool:
    """Whether the process has ended. The operating system reports that a little after its connections end."""
    try:
        await asyncio.wait_for(process.wait(), ENDING_SECONDS)
    except TimeoutError:
        return False
    return True


def _reason(log: bytes) -> str:
    """The last error in the log, or else the last line."""
    lines = log.decode(errors="replace").strip().splitlines() or ["nothing logged"]
    errors = [line for line in lines if " E " in line or "GGML_ASSERT" in line or line.startswith("error")]
    return (errors or lines)[-1]
