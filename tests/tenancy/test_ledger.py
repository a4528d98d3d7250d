"""The ledger: bookings survive a crash of the process, and a database that is busy for a while."""

import asyncio
import logging
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from control_plane.errors import ConfigError, TenancyError
from control_plane.tenancy.storage.ledger import Ledger
from control_plane.tenancy.storage.store import TenantStore
from control_plane.tenancy.usage import Booking

REFUSE_BOB = """CREATE TRIGGER full BEFORE INSERT ON usage WHEN NEW.tenant = 'bob'
BEGIN SELECT RAISE(ABORT, 'disk is full'); END"""

BOOK_UNTIL_KILLED = """
import asyncio, os, sys
from pathlib import Path
from control_plane.tenancy.storage.ledger import Ledger
from control_plane.tenancy.usage import Booking

async def tenant(ledger, name):
    number = 0
    while True:
        await ledger.book(Booking(name, number, 1, 7, 3, 0.5, 0.001))
        os.write(1, name.encode() + b"\\n")
        number += 1

async def main():
    async with Ledger.open(Path(sys.argv[1])) as ledger:
        await asyncio.gather(*(tenant(ledger, f"tenant-{number}") for number in range(8)))

asyncio.run(main())
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "faasmoe.db"


def booking(tenant: str, at: float = 0.0) -> Booking:
    return Booking(tenant, at, 1, 10, 5, 1.5, 0.25)


def requests(path: Path) -> dict[str, int]:
    """Numbers of booked requests by tenant."""
    with TenantStore.open(path) as store:
        return {usage.tenant: usage.requests for usage in store.usage(None, None)}


def execute(path: Path, statement: str) -> None:
    with TenantStore.open(path), closing(sqlite3.connect(path)) as other:
        other.execute(statement)


def test_other_connections_see_committed_bookings(path: Path) -> None:
    async def book() -> None:
        async with Ledger.open(path) as ledger:
            for count in range(1, 4):
                await ledger.book(booking("acme"))
                assert requests(path) == {"acme": count}

    asyncio.run(book())


def test_concurrent_bookings_share_transactions(path: Path) -> None:
    """With a transaction per booking, the write-ahead log would have at least one page for each."""

    async def book() -> int:
        async with Ledger.open(path) as ledger:
            await asyncio.gather(*(ledger.book(booking(f"t{number % 7}")) for number in range(5000)))
            return path.with_name(f"{path.name}-wal").stat().st_size

    assert asyncio.run(book()) < 50 * 4096
    assert requests(path) == {f"t{number}": len(range(number, 5000, 7)) for number in range(7)}


def test_the_end_of_the_context_writes_pending_bookings(path: Path) -> None:
    async def book() -> None:
        async with Ledger.open(path) as ledger:
            tasks = [asyncio.create_task(ledger.book(booking("acme"))) for _ in range(20)]
            await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
        assert [task.cancelled() for task in tasks] == [True, False] * 10

    asyncio.run(book())
    assert requests(path) == {"acme": 20}


def test_a_failed_booking_raises_and_later_ones_are_written(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    execute(path, REFUSE_BOB)

    async def book() -> None:
        async with Ledger.open(path) as ledger:
            await ledger.book(booking("acme"))
            with pytest.raises(TenancyError, match="disk is full"):
                await ledger.book(booking("bob"))
            await ledger.book(booking("carl"))

    asyncio.run(book())
    assert requests(path) == {"acme": 1, "carl": 1}
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3 + ["ERROR"]


def test_a_failed_booking_does_not_affect_other_callers(path: Path) -> None:
    execute(path, REFUSE_BOB)

    async def book() -> list[BaseException | None]:
        async with Ledger.open(path) as ledger:
            first = asyncio.create_task(ledger.book(booking("bob")))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            later = [ledger.book(booking("acme")) for _ in range(3)]
            return await asyncio.gather(first, *later, return_exceptions=True)

    refused, *booked = asyncio.run(book())
    assert isinstance(refused, TenancyError)
    assert booked == [None] * 3
    assert requests(path) == {"acme": 3}


def test_a_failed_booking_is_retried(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    execute(path, REFUSE_BOB)

    class MakeRoom(logging.Handler):
        """Repairs the database when the ledger logs that a booking failed."""

        def emit(self, record: logging.LogRecord) -> None:
            execute(path, "DROP TRIGGER IF EXISTS full")

    async def book() -> None:
        async with Ledger.open(path) as ledger:
            await ledger.book(booking("bob"))

    logger = logging.getLogger("control_plane.tenancy.storage.ledger")
    handler = MakeRoom()
    logger.addHandler(handler)
    try:
        asyncio.run(book())
    finally:
        logger.removeHandler(handler)
    assert requests(path) == {"bob": 1}
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_database_that_cannot_be_opened(tmp_path: Path) -> None:
    async def book() -> None:
        async with Ledger.open(tmp_path):
            pass

    with pytest.raises(ConfigError, match=f"cannot open the database {tmp_path}: Is a directory"):
        asyncio.run(book())


def test_a_kill_loses_no_committed_booking(path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", BOOK_UNTIL_KILLED, path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        reported = [process.stdout.readline() for _ in range(2000)]
        process.send_signal(signal.SIGKILL)
        reported += process.stdout.read().splitlines(keepends=True)
    assert process.returncode == -signal.SIGKILL
    booked = requests(path)
    assert len(booked) == 8
    for tenant, count in booked.items():
        # One more booking may have been committed, but not reported.
        assert count - reported.count(f"{tenant}\n".encode()) in (0, 1)
    with closing(sqlite3.connect(path)) as reader:
        assert reader.execute("PRAGMA integrity_check").fetchone() == ("ok",)
