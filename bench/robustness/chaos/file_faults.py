"""Faults of files: the database and the expert blocks.

Each is injected when its context begins, and ended when the context ends.
"""

import asyncio
import random
import resource
import shutil
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

from yarl import URL

from bench.robustness.stack import Stack
from control_plane.errors import FaaSMoEError
from control_plane.faas.client import Gateway
from control_plane.faas.gateway_access import read_function_secret
from control_plane.partition.manifest import Manifest

HIGHEST_EXPONENT_BIT = 0x40
"""In the last byte of a float32: makes a weight some 10^38 times as large."""
LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


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
    secret = read_function_secret(stack.secret_file)
    async with Gateway.connect(URL(stack.gateway.url), None, secret) as gateway:
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


def _block_file(stack: Stack, numbers: random.Random) -> tuple[Path, str, int]:
    """A block's file, its function, and the offset of a weight in its first expert."""
    block = numbers.choice(Manifest.load(stack.partition).blocks)
    middle = block.expert_nbytes // 2 // 4 * 4
    return stack.partition / block.file, block.function, block.offset + middle
