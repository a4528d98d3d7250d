"""Ledgers over a database file, and another process that is in their way."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from control_plane.tenancy.storage.ledger import Ledger
from control_plane.tenancy.storage.store import TenantStore
from control_plane.tenancy.storage.store_thread import StoreThread
from control_plane.tenancy.usage import Booking

DEADLINE = 30.0


def booking(tenant: str, at: float = 0.0) -> Booking:
    """One request of a tenant."""
    return Booking(tenant, at, 1, 10, 5, 1.5, 0.25)


def requests(path: Path) -> dict[str, int]:
    """Numbers of booked requests by tenant."""
    with TenantStore.open(path) as store:
        return {usage.tenant: usage.requests for usage in store.usage(None, None)}


def spools(path: Path) -> list[Path]:
    """The database's spool files."""
    return sorted(path.parent.glob(f"{path.name}.spool-*"))


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Ledger]:
    """A ledger over the database in this file, which is made if it is missing."""
    async with StoreThread.open(path, "tenants") as store, Ledger.open(store, path) as ledger:
        yield ledger


async def drained(ledger: Ledger) -> None:
    """Wait until the database has all bookings."""
    if ledger._replayer:
        await asyncio.wait([ledger._replayer], timeout=DEADLINE)
    assert ledger.waiting == 0


@contextmanager
def locked(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds the database's write lock until the context ends."""
    program = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); "
        "c.execute('BEGIN EXCLUSIVE'); print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        yield process
        process.stdin.close()
