"""The ledger makes bookings safe, also while the database is locked or refuses some."""

import asyncio
import sqlite3
import stat
import time
from contextlib import closing, nullcontext
from pathlib import Path

import pytest

from control_plane.errors import ConfigError
from control_plane.tenancy.storage.ledger import Ledger
from control_plane.tenancy.storage.store import TenantStore
from control_plane.tenancy.storage.store_thread import StoreThread
from control_plane.tenancy.tenants import Limits
from tests.support.ledgers import booking, drained, locked, opened, requests, spools

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("impatient")]

REFUSE_BOB = """CREATE TRIGGER full BEFORE INSERT ON usage WHEN NEW.tenant = 'bob'
BEGIN SELECT RAISE(ABORT, 'disk is full'); END"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "faasmoe.db"


def execute(path: Path, statement: str) -> None:
    with TenantStore.open(path), closing(sqlite3.connect(path)) as other:
        other.execute(statement)


def test_other_connections_see_committed_bookings(path: Path) -> None:
    async def book() -> None:
        async with opened(path) as ledger:
            for count in range(1, 4):
                await ledger.book(booking("acme"))
                assert requests(path) == {"acme": count}

    asyncio.run(book())


def test_concurrent_bookings_share_transactions(path: Path) -> None:
    async def book() -> None:
        async with opened(path) as ledger:
            await asyncio.gather(*(ledger.book(booking(f"t{number % 7}")) for number in range(5000)))

    asyncio.run(book())
    assert requests(path) == {f"t{number}": len(range(number, 5000, 7)) for number in range(7)}
    with closing(sqlite3.connect(path)) as reader:
        assert reader.execute("SELECT max(last) FROM writers").fetchone() < (5,)


def test_the_end_of_the_context_writes_pending_bookings(path: Path) -> None:
    async def book() -> None:
        async with opened(path) as ledger:
            tasks = [asyncio.create_task(ledger.book(booking("acme"))) for _ in range(20)]
            await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
        assert [task.cancelled() for task in tasks] == [True, False] * 10

    asyncio.run(book())
    assert requests(path) == {"acme": 20}


def test_a_lock_of_another_process_delays_bookings_and_loses_none(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each booking is safe within the ledger's patience, while the lock lasts for many times that."""

    async def book() -> None:
        async with opened(path) as ledger:
            with locked(path):
                longest = 0.0
                for _ in range(20):
                    begun = time.monotonic()
                    await ledger.book(booking("acme"))
                    longest = max(longest, time.monotonic() - begun)
                assert longest < 2.0
                assert (ledger.waiting, ledger.spooled) == (20, 20)
                (spool,) = spools(path)
                assert stat.S_IMODE(spool.stat().st_mode) == 0o600
                await asyncio.sleep(0.5)
                assert ledger.waiting == 20
            await drained(ledger)
            await ledger.book(booking("acme"))
            assert ledger.spooled == 20

    asyncio.run(book())
    assert requests(path) == {"acme": 21}
    assert spools(path) == []
    logged = [record.getMessage() for record in caplog.records if "storage.ledger" in record.name]
    assert logged[0].startswith("usage waits for the database")
    assert logged[1:] == ["the database has all usage again: 20 bookings had waited"]


def test_a_lock_does_not_block_others(path: Path) -> None:
    """Keys are read meanwhile, and the event loop runs."""
    with TenantStore.open(path) as store:
        key = store.add("acme", Limits(), operator=False)

    async def ask() -> None:
        async with StoreThread.open(path, "tenants") as thread, Ledger.open(thread, path) as ledger:
            with locked(path):
                books = [asyncio.create_task(ledger.book(booking("acme"))) for _ in range(5)]
                begun = time.monotonic()
                found = await thread.run(lambda store: store.authenticate(key))
                assert found.name == "acme"
                assert time.monotonic() - begun < 1.0
                await asyncio.gather(*books)

    asyncio.run(ask())


def test_a_spool_of_a_living_process_is_left_to_it(path: Path) -> None:
    async def book() -> None:
        async with opened(path) as first:
            with locked(path):
                await first.book(booking("acme"))
                assert len(spools(path)) == 1
            async with opened(path) as second:
                assert second.waiting == 0
            await drained(first)

    asyncio.run(book())
    assert requests(path) == {"acme": 1}


def test_usage_that_waits_at_the_end_is_booked_at_the_next_start(path: Path) -> None:
    async def book(is_locked: bool) -> None:
        async with StoreThread.open(path, "tenants") as store:
            with locked(path) if is_locked else nullcontext():
                async with Ledger.open(store, path) as ledger:
                    await ledger.book(booking("acme"))

    asyncio.run(book(is_locked=True))
    assert requests(path) == {}
    assert len(spools(path)) == 1
    asyncio.run(book(is_locked=False))
    assert requests(path) == {"acme": 2}
    assert spools(path) == []


def test_bookings_that_the_database_refuses_do_not_keep_others_from_being_safe(path: Path) -> None:
    execute(path, REFUSE_BOB)

    async def book() -> None:
        async with opened(path) as ledger:
            await ledger.book(booking("acme"))
            await ledger.book(booking("bob"))
            await ledger.book(booking("carl"))
            assert ledger.waiting == 2
            execute(path, "DROP TRIGGER full")
            await drained(ledger)

    asyncio.run(book())
    assert requests(path) == {"acme": 1, "bob": 1, "carl": 1}


def test_a_database_that_cannot_be_opened(tmp_path: Path) -> None:
    async def book() -> None:
        async with opened(tmp_path):
            pass

    with pytest.raises(ConfigError, match=f"cannot open the database {tmp_path}: Is a directory"):
        asyncio.run(book())
