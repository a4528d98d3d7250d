"""The faults of the chaos test: each is injected when its context begins, and ended when the context ends."""

import asyncio
import itertools
import os
import random
import resource
import shutil
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from msgspec.structs import replace
from yarl import URL

from bench.robustness.stack import Part, Stack
from control_plane.errors import FaaSMoEError
from control_plane.faas.client import Gateway
from control_plane.faas.types import FunctionDeployment
from control_plane.partition.manifest import Manifest

STARVE_POLL_SECONDS = 0.01
REMOVAL_SECONDS = 30.0
"""How long a gateway may take to remove a function from its list, and then to end its process."""
ANNOTATION = "faasmoe.chaos"
HIGHEST_EXPONENT_BIT = 0x40
"""In the last byte of a float32: makes a weight some 10^38 times as large."""
LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""
_revisions = itertools.count(1)

Inject = Callable[[Stack, random.Random], AbstractAsyncContextManager[None]]


@dataclass(frozen=True)
class Fault:
    """One kind of fault."""

    name: str
    inject: Inject
    hold: float = 0.0
    """Seconds between injecting and ending it."""
    aim: float = 3.0
    """The longest stall that is aimed at, in seconds. Where nothing can be served meanwhile, `hold` adds."""


@asynccontextmanager
async def kill_function(stack: Stack, numbers: random.Random) -> AsyncIterator[None]:
    """Send SIGKILL to a function's process."""
    (await stack.function(numbers.choice(stack.functions))).kill()
    yield


@asynccontextmanager
async def pause_function(stack: Stack, numbers: random.Random) -> AsyncIterator[None]:
    """Stop a function's process, and let it go on later."""
    process = await stack.function(numbers.choice(stack.functions))
    process.suspend()
    yield
    with suppress(psutil.NoSuchProcess):
        process.resume()


@asynccontextmanager
async def hang_function(stack: Stack, numbers: random.Random) -> AsyncIterator[None]:
    """Stop a function's process for good."""
    (await stack.function(numbers.choice(stack.functions))).suspend()
    yield


@asynccontextmanager
async def redeploy_function(stack: Stack, numbers: random.Random) -> AsyncIterator[None]:
    """Update a function's deployment, so that its process is replaced."""
    name = numbers.choice(stack.functions)
    async with Gateway.connect(URL(stack.gateway.url), None) as gateway:
        deployment = await _deployment(gateway, name)
        changed = {**deployment.annotations, ANNOTATION: str(next(_revisions))}
        await gateway.deploy(replace(deployment, annotations=changed))
        yield


@asynccontextmanager
async def remove_function(stack: Stack, numbers: random.Random) -> AsyncIterator[None]:
    """Remove a function whose process is stopped, so that its connections are not reset; deploy it again."""
    name = numbers.choice(stack.functions)
    async with Gateway.connect(URL(stack.gateway.url), None) as gateway:
        deployment = await _deployment(gateway, name)
        (await stack.function(name)).suspend()
        removal = asyncio.create_task(gateway.remove(name))
        try:
            async with asyncio.timeout(REMOVAL_SECONDS):
                while name in {status.name for status in await gateway.functions()}:
                    await asyncio.sleep(0.05)
            await gateway.deploy(deployment)
            yield
            await asyncio.wait([removal], timeout=REMOVAL_SECONDS)
        finally:
            removal.cancel()
            await asyncio.gather(removal, return_exceptions=True)


@asynccontextmanager
async def starve_function(stack: Stack, numbers: random.Random) -> AsyncIterator[None]:
    """Kill a function's process as the kernel does when memory is short, and let none after it get memory."""
    name = numbers.choice(stack.functions)

    async def starve() -> None:
        while True:
            for process in stack.function_processes(name):
                with suppress(ProcessLookupError):
                    _, hard = resource.prlimit(process.pid, resource.RLIMIT_AS)
                    resource.prlimit(process.pid, resource.RLIMIT_AS, (1, hard))
            await asyncio.sleep(STARVE_POLL_SECONDS)

    (await stack.function(name)).kill()
    starving = asyncio.create_task(starve())
    try:
        yield
    finally:
        starving.cancel()
        await asyncio.gather(starving, return_exceptions=True)
    for process in stack.function_processes(name):
        process.kill()


@asynccontextmanager
async def kill_gateway(stack: Stack, numbers: random.Random) -> AsyncIterator[None]:
    """Kill the gateway, and start it again on its port."""
    await _replace(stack.gateway)
    yield


@asynccontextmanager
async def hang_gateway(stack: Stack, numbers: random.Random) -> AsyncIterator[None]:
    """Stop the gateway, and let it go on later."""
    os.kill(stack.gateway.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(stack.gateway.pid, signal.SIGCONT)


@asynccontextmanager
async def kill_control_plane(stack: Stack, numbers: random.Random) -> AsyncIterator[None]:
    """Kill the control plane, and start it again on its port."""
    await _replace(stack.control_plane)
    yield


@asynccontextmanager
async def lock_database(stack: Stack, numbers: random.Random) -> AsyncIterator[None]:
    """Hold the database's write lock in another process."""
    holder = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", LOCK, str(stack.database)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        if holder.stdout is None or await holder.stdout.readline() != b"locked\n":
            raise FaaSMoEError("the database could not be locked")
        yield
    finally:
        # The lock ends with the process.
        with suppress(ProcessLookupError):
            holder.kill()
        await holder.communicate()


@asynccontextmanager
async def fill_database(stack: Stack, numbers: random.Random) -> AsyncIterator[None]:
    """Let the control plane write nothing to any file, as if its disk were full."""
    pid = stack.control_plane.pid
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


@asynccontextmanager
async def replace_database(stack: Stack, numbers: random.Random) -> AsyncIterator[None]:
    """Put a copy in the database's place, as when a backup is restored."""
    await asyncio.to_thread(put_copy_in_place, stack.database)
    yield


@asynccontextmanager
async def touch_block(stack: Stack, numbers: random.Random) -> AsyncIterator[None]:
    """Give a block file a new time of change, and have its function read it again. Its content stays."""
    file, function, _ = _block_file(stack, numbers)
    file.touch()
    async with Gateway.connect(URL(stack.gateway.url), None) as gateway:
        await gateway.release_residency(function)
    yield


@asynccontextmanager
async def flip_bit(stack: Stack, numbers: random.Random) -> AsyncIterator[None]:
    """Put a block with one wrong bit in a block's place, restart its function, and restore it later.

    Files are renamed, not written to: what a running function has mapped stays whole.
    """
    file, function, weight = _block_file(stack, numbers)
    good, bad = file.with_suffix(".good"), file.with_suffix(".bad")
    shutil.copy2(file, good)
    content = bytearray(file.read_bytes())
    content[weight + 3] ^= HIGHEST_EXPONENT_BIT
    bad.write_bytes(content)
    # Damage on a disk changes no times.
    shutil.copystat(file, bad)
    bad.replace(file)
    try:
        (await stack.function(function)).kill()
        yield
    finally:
        good.replace(file)


def _listed(*faults: Fault) -> Mapping[str, Fault]:
    return {fault.name: fault for fault in faults}


FAULTS = _listed(
    Fault("function-killed", kill_function),
    Fault("function-paused", pause_function, hold=10.0, aim=5.0),
    Fault("function-hung", hang_function, aim=5.0),
    Fault("function-redeployed", redeploy_function),
    Fault("function-removed", remove_function),
    Fault("function-starved", starve_function, hold=6.0, aim=9.0),
    Fault("gateway-killed", kill_gateway),
    Fault("gateway-hung", hang_gateway, hold=10.0),
    Fault("control-plane-killed", kill_control_plane),
    Fault("database-locked", lock_database, hold=20.0),
    Fault("database-full", fill_database, hold=10.0),
    Fault("database-replaced", replace_database),
    Fault("block-touched", touch_block),
    Fault("bit-flipped", flip_bit, hold=6.0, aim=9.0),
)
"""All faults by name."""


def put_copy_in_place(database: Path) -> None:
    """Copy the database and rename the copy, while nobody can write to it: no booking falls in between."""
    copy = database.with_suffix(".copy")
    with (
        closing(sqlite3.connect(database, timeout=30, isolation_level=None)) as old,
        closing(sqlite3.connect(copy, isolation_level=None)) as new,
        closing(sqlite3.connect(database, timeout=30)) as reader,
    ):
        old.execute("BEGIN IMMEDIATE")
        reader.backup(new)
        new.execute("PRAGMA journal_mode = DELETE")
        new.close()
        copy.replace(database)
        for suffix in ("-wal", "-shm"):
            database.with_name(database.name + suffix).unlink(missing_ok=True)


async def _deployment(gateway: Gateway, name: str) -> FunctionDeployment:
    for status in await gateway.functions():
        if status.name == name:
            return status.deployment
    raise FaaSMoEError(f"the gateway does not list {name}")


async def _replace(part: Part) -> None:
    await part.kill()
    await part.start()


def _block_file(stack: Stack, numbers: random.Random) -> tuple[Path, str, int]:
    """A block's file, its function, and the offset of a weight in its first expert."""
    block = numbers.choice(Manifest.load(stack.partition).blocks)
    middle = block.expert_nbytes // 2 // 4 * 4
    return stack.partition / block.file, block.function, block.offset + middle
