"""Starts FaaSMoE as a user would: by its commands, each in its own process."""

import asyncio
import re
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml

from bench.support.cgroup import Cgroup
from control_plane.errors import FaaSMoEError
from control_plane.partition.partitioner import partition
from control_plane.signals import sigterm_exits

FAASMOE = "control_plane"
START_SECONDS = 120.0
STOP_SECONDS = 20.0

SETTINGS: Mapping[str, Any] = {"log_level": "warning", "prefix_cache": False}
"""Of servers, unless a benchmark has others. Prompts that are sent in each round must be computed in each."""


@dataclass(frozen=True)
class Server:
    """A running control plane with its gateway and functions."""

    url: str
    keys: Mapping[str, str]
    """API keys by tenant."""
    pid: int
    gateway_pid: int


@asynccontextmanager
async def server(
    folder: Path, tenants: Sequence[str], settings: Mapping[str, Any] | None = None
) -> AsyncIterator[Server]:
    """Serve the partition in `folder` to new tenants until the end of the context.

    `settings` go to the server's YAML file. Raises `FaaSMoEError` if a process does not start.
    """
    async with (
        gateway(folder) as (gateway_pid, gateway_url),
        control_plane(folder, gateway_url, tenants, settings) as (pid, url, keys),
    ):
        yield Server(url, keys, pid, gateway_pid)


@asynccontextmanager
async def gateway(folder: Path) -> AsyncIterator[tuple[int, str]]:
    """Run an embedded gateway with all functions of a partition. Yields its process id and address."""
    async with running("gateway", folder, "--port", "0") as (pid, url):
        await output("deploy", folder, "--gateway", url)
        yield pid, url


@asynccontextmanager
async def control_plane(
    folder: Path, gateway_url: str, tenants: Sequence[str], settings: Mapping[str, Any] | None = None
) -> AsyncIterator[tuple[int, str, Mapping[str, str]]]:
    """Run a control plane for new tenants. Yields its process id, its address, and the keys by tenant."""
    with tempfile.TemporaryDirectory(prefix="faasmoe-") as temporary:
        database = Path(temporary) / "faasmoe.db"
        config = Path(temporary) / "serve.yml"
        config.write_text(yaml.safe_dump({"database": str(database), **SETTINGS, **(settings or {})}))
        keys = {name: await output("tenants", "add", name, "--database", str(database)) for name in tenants}
        arguments = (folder, "--gateway", gateway_url, "--port", "0", "--config", config)
        async with running("serve", *arguments) as (pid, url):
            yield pid, url, keys


@asynccontextmanager
async def served_model(
    model: Path, tenants: Sequence[str], settings: Mapping[str, Any] | None = None
) -> AsyncIterator[Server]:
    """Partition a checkpoint, and serve it like `server`."""
    with tempfile.TemporaryDirectory(prefix="faasmoe-") as temporary:
        folder = Path(temporary) / model.name
        await asyncio.to_thread(partition, model, folder)
        async with server(folder, tenants, settings) as served:
            yield served


@asynccontextmanager
async def up(
    folder: Path,
    settings: Mapping[str, Any],
    options: Sequence[str] = (),
    group: Cgroup | None = None,
    start_seconds: float = START_SECONDS,
) -> AsyncIterator[tuple[int, str]]:
    """Serve a partition by `faasmoe up`, without API keys. Yields its process id and address.

    `settings` go to its YAML file, `options` to its command line. With a `group`, it runs in that.
    """
    with tempfile.TemporaryDirectory(prefix="faasmoe-") as temporary:
        database = Path(temporary) / "faasmoe.db"
        config = Path(temporary) / "up.yml"
        config.write_text(yaml.safe_dump({"database": str(database), **SETTINGS, **settings}))
        arguments = (folder, "--open", "--port", "0", "--gateway-port", "0", "--config", config, *options)
        async with running("up", *arguments, group=group, start_seconds=start_seconds) as served:
            yield served


@asynccontextmanager
async def running(
    *arguments: object,
    group: Cgroup | None = None,
    start_seconds: float = START_SECONDS,
    module: str = FAASMOE,
) -> AsyncIterator[tuple[int, str]]:
    """Run a server until the end of the context, or of this process. Yields its process id and its address.

    `arguments` are those of a faasmoe command, or of another `module`. Raises `FaaSMoEError` if the server
    ends before it serves, or takes too long.
    """
    command = command_of(arguments, module)
    with sigterm_exits():
        process, url = await start(group.command(command) if group else command, start_seconds)
        try:
            yield process.pid, url
        finally:
            await stop(process)


async def start(
    command: Sequence[str],
    start_seconds: float = START_SECONDS,
    environment: Mapping[str, str] | None = None,
    log: IO[bytes] | None = None,
) -> tuple[asyncio.subprocess.Process, str]:
    """Start a server, and wait for its address. The caller stops it.

    Its errors go to `log`, or where this process's go. Raises `FaaSMoEError` if the server ends before it
    serves, or takes too long; no process is left then.
    """
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=log, env=environment, start_new_session=True
    )
    try:
        async with asyncio.timeout(start_seconds) as starting:
            return process, await _address(process)
    except BaseException as error:
        await stop(process)
        if isinstance(error, TimeoutError) and starting.expired():
            raise FaaSMoEError(f"a part was not ready within {start_seconds:g} s") from error
        raise


async def output(*arguments: object) -> str:
    """Run a faasmoe command, and return what it prints. Raises `FaaSMoEError` if it fails."""
    process = await asyncio.create_subprocess_exec(
        *command_of(arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    printed, problem = await asyncio.wait_for(process.communicate(), START_SECONDS)
    if process.returncode:
        raise FaaSMoEError(f"`faasmoe {arguments[0]}` has failed: {problem.decode().strip()}")
    return printed.decode().strip()


async def stop(process: asyncio.subprocess.Process) -> None:
    """Terminate a process; kill it if it does not end in time."""
    if process.returncode is None:
        process.terminate()
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def free_port() -> int:
    """A free port on loopback, for programs that cannot choose one themselves and say so."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def command_of(arguments: Sequence[object], module: str = FAASMOE) -> list[str]:
    """The command line of a faasmoe command, or of another module."""
    return [sys.executable, "-m", module, *map(str, arguments)]


async def _address(process: asyncio.subprocess.Process) -> str:
    """Wait for the address that the process prints when it serves. Raises `FaaSMoEError` if it ends."""
    if process.stdout is not None:
        async for line in process.stdout:
            if found := re.search(rb"(http://[\w.:]+); Ctrl-C stops it", line):
                return found[1].decode()
    await process.wait()
    raise FaaSMoEError("a part did not start, see above")
