"""The processes under test: gateway, functions, control plane. Each can be killed and started again."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil
import yaml

from bench.support import processes
from control_plane.errors import FaaSMoEError
from control_plane.faas.gateway_access import make_function_secret
from control_plane.partition.manifest import Manifest
from functions.contract.process import FUNCTION_VARIABLE, PARTITION_VARIABLE

FUNCTION_SECONDS = 60.0
"""How long a function may have no process."""
POLL_SECONDS = 0.02
END_SECONDS = 20.0
"""How long processes and connections may take to end."""


@dataclass
class Part:
    """A server that keeps its port when it is started again."""

    arguments: Callable[[int], Sequence[object]]
    """The arguments of its faasmoe command, for a port."""
    log: IO[bytes]
    environment: Mapping[str, str]
    url: str = ""
    kills: int = 0
    """Odd while it is being killed: requests of that time, and those that it divides, are lost with it."""
    _process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """The process's id. Raises `FaaSMoEError` if there is none."""
        if self._process is None or self._process.returncode is not None:
            raise FaaSMoEError("a part has ended by itself")
        return self._process.pid

    async def start(self) -> None:
        """Start it, on its port if it had one. Raises `FaaSMoEError`."""
        port = int(self.url.rpartition(":")[2]) if self.url else 0
        command = processes.command_of(self.arguments(port))
        self._process, self.url = await processes.start(command, environment=self.environment, log=self.log)

    async def kill(self) -> None:
        """Send SIGKILL, and wait for its end."""
        self.kills += 1
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        self.kills += 1

    async def stop(self) -> None:
        """End it in order, even if it was stopped by a signal."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGCONT)
            await processes.stop(self._process)


@dataclass
class Stack:
    """A served partition. All that belongs to it is in one folder."""

    folder: Path
    partition: Path
    database: Path
    gateway: Part
    control_plane: Part
    secret_file: Path
    """The functions' secret."""
    keys: Mapping[str, str]
    """API keys by tenant."""
    ports: set[int] = field(default_factory=set)
    """All TCP ports on which its processes were seen to listen."""

    @property
    def functions(self) -> list[str]:
        """The names of all functions."""
        return [block.function for block in Manifest.load(self.partition).blocks]

    async def function(self, name: str) -> psutil.Process:
        """The newest process of a function. Raises `FaaSMoEError` if there is none for a minute."""
        deadline = time.monotonic() + FUNCTION_SECONDS
        while time.monotonic() < deadline:
            if found := self.function_processes(name):
                return found[-1]
            await asyncio.sleep(POLL_SECONDS)
        raise FaaSMoEError(f"{name} has no process")

    def function_processes(self, name: str) -> list[psutil.Process]:
        """The gateway's processes of a function, oldest first."""
        found = []
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.gateway.pid).children(recursive=True):
                with suppress(psutil.Error):
                    if process.environ().get(FUNCTION_VARIABLE) == name:
                        found.append(process)
        return sorted(found, key=lambda process: process.create_time())

    def processes(self) -> list[psutil.Process]:
        """All processes that serve this partition, whoever their parent is. Notes their ports, too."""
        found = [process for process in psutil.process_iter() if self._owns(process)]
        for process in found:
            with suppress(psutil.Error):
                listening = [each for each in process.net_connections("tcp") if each.status == "LISTEN"]
                self.ports |= {each.laddr.port for each in listening}
        return found

    def connections(self) -> int:
        """TCP connections of its ports that the kernel still holds, without those in TIME_WAIT."""
        over = ("LISTEN", "TIME_WAIT", "NONE")
        return sum(
            1
            for each in psutil.net_connections("tcp")
            if each.status not in over and self.ports & {end.port for end in (each.laddr, each.raddr) if end}
        )

    async def deploy(self) -> None:
        """Deploy all functions that are missing or have changed. Raises `FaaSMoEError`."""
        secret = ("--function-secret-file", self.secret_file)
        await processes.output("deploy", self.partition, "--gateway", self.gateway.url, *secret)

    async def start(self) -> None:
        """Start everything. Raises `FaaSMoEError`."""
        await self.gateway.start()
        await self.deploy()
        await self.control_plane.start()

    async def restart(self) -> None:
        """Kill everything that is left, and start anew."""
        await self.control_plane.kill()
        await self.gateway.kill()
        await asyncio.to_thread(self.kill_left)
        await self.start()

    async def stop(self) -> None:
        """End everything in order: first the control plane, then the gateway with its functions."""
        await self.control_plane.stop()
        await self.gateway.stop()

    def kill_left(self) -> None:
        """Kill all processes that still serve this partition."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()

    async def usage(self) -> Mapping[str, Mapping[str, Any]]:
        """Booked requests and tokens of each tenant: `requests`, `prompt_tokens`, `generated_tokens`."""
        printed = await processes.output("usage", "--json", "--database", self.database)
        return {row["tenant"]: row for row in json.loads(printed)}

    def _owns(self, process: psutil.Process) -> bool:
        try:
            if process.pid == os.getpid():
                return False
            if process.environ().get(PARTITION_VARIABLE) == str(self.partition):
                return True
            return any(str(self.folder) in argument for argument in process.cmdline())
        except psutil.Error:
            return False


@asynccontextmanager
async def stack(
    folder: Path, partition: Path, tenants: Sequence[str], settings: Mapping[str, Any]
) -> AsyncIterator[Stack]:
    """Serve a partition to new tenants; no process outlives the context.

    `folder` gets the database, the settings, the logs and all state. `settings` go to the control plane.
    Raises `FaaSMoEError` if a process does not start.
    """
    database, config, secret_file = (folder / name for name in ("faasmoe.db", "serve.yml", "secret"))
    make_function_secret(secret_file)
    files = {"database": str(database), "function_secret_file": str(secret_file)}
    config.write_text(yaml.safe_dump({"log_level": "warning", **files, **settings}))
    keys = {name: await processes.output("tenants", "add", name, "--database", database) for name in tenants}
    environment = {**os.environ, "XDG_STATE_HOME": str(folder / "state")}
    with ExitStack() as logs:
        gateway = Part(
            lambda port: ("gateway", partition, "--port", port), _log(logs, folder, "gateway"), environment
        )
        control_plane = Part(
            lambda port: ("serve", partition, "--gateway", gateway.url, "--port", port, "--config", config),
            _log(logs, folder, "control-plane"),
            environment,
        )
        served = Stack(folder, partition, database, gateway, control_plane, secret_file, keys)
        try:
            await served.start()
            yield served
        finally:
            try:
                await served.stop()
            finally:
                served.kill_left()


async def settled(count: Callable[[], int]) -> int:
    """Wait until a count is zero or less, and return 0; or what it is after `END_SECONDS`."""
    deadline = time.monotonic() + END_SECONDS
    while (found := await asyncio.to_thread(count)) > 0 and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    return max(0, found)


@asynccontextmanager
async def ended_by_sigterm() -> AsyncIterator[None]:
    """Let SIGTERM end the block in order, as Ctrl-C does, and then the program."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    arrived = asyncio.Event()

    def end() -> None:
        arrived.set()
        task.cancel()

    loop.add_signal_handler(signal.SIGTERM, end)
    try:
        yield
    except asyncio.CancelledError:
        if arrived.is_set():
            sys.exit(128 + signal.SIGTERM)
        raise
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


def last_lines(folder: Path, count: int) -> Iterator[str]:
    """The last lines of the logs in a stack's folder, each with the log's name before it."""
    for file in sorted(folder.glob("*.log")):
        for line in file.read_text(errors="replace").splitlines()[-count:]:
            yield f"{file.stem}: {line}"


def _log(logs: ExitStack, folder: Path, name: str) -> IO[bytes]:
    return logs.enter_context((folder / f"{name}.log").open("wb"))
