"""The ledger loses no booking and books none twice: killed, locked out, or without disk space."""

import asyncio
import os
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, nullcontext, suppress
from pathlib import Path

import pytest

from control_plane.errors import ConfigError, DatabaseUnavailable
from control_plane.tenancy.storage import ledger as ledger_module
from control_plane.tenancy.storage import spool as spool_module
from control_plane.tenancy.storage.ledger import Ledger
from control_plane.tenancy.storage.spool import Spool
from control_plane.tenancy.storage.store import TenantStore
from control_plane.tenancy.storage.store_thread import StoreThread
from control_plane.tenancy.tenants import Limits
from control_plane.tenancy.usage import Booking, Entry

pytestmark = pytest.mark.slow

DEADLINE = 30.0
REFUSE_BOB = """CREATE TRIGGER full BEFORE INSERT ON usage WHEN NEW.tenant = 'bob'
BEGIN SELECT RAISE(ABORT, 'disk is full'); END"""

BOOK_UNTIL_KILLED = """
import asyncio, os, sys
from pathlib import Path
from control_plane.tenancy.storage.ledger import Ledger
from control_plane.tenancy.storage.store_thread import StoreThread
from control_plane.tenancy.usage import Booking

async def tenant(ledger, name):
    number = 0
    while True:
        await ledger.book(Booking(name, number, 1, 7, 3, 0.5, 0.001))
        os.write(1, name.encode() + b"\\n")
        number += 1

async def main():
    path = Path(sys.argv[1])
    async with StoreThread.open(path, "tenants") as store, Ledger.open(store, path) as ledger:
        await asyncio.gather(*(tenant(ledger, f"tenant-{number}") for number in range(8)))

asyncio.run(main())
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "faasmoe.db"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(ledger_module, "LAST_PAUSE_SECONDS", 0.2)


def booking(tenant: str, at: float = 0.0) -> Booking:
    return Booking(tenant, at, 1, 10, 5, 1.5, 0.25)


def requests(path: Path) -> dict[str, int]:
    """Numbers of booked requests by tenant."""
    with TenantStore.open(path) as store:
        return {usage.tenant: usage.requests for usage in store.usage(None, None)}


def execute(path: Path, statement: str) -> None:
    with TenantStore.open(path), closing(sqlite3.connect(path)) as other:
        other.execute(statement)


def spools(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.spool-*"))


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Ledger]:
    async with StoreThread.open(path, "tenants") as store, Ledger.open(store, path) as ledger:
        yield ledger


async def drained(ledger: Ledger) -> None:
    """Wait until the database has all bookings."""
    deadline = time.monotonic() + DEADLINE
    while ledger.waiting:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


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


def test_a_kill_between_spool_and_replay(path: Path) -> None:
    """Bookings that were reported as safe are booked at the next start, each once."""
    with subprocess.Popen([sys.executable, "-c", BOOK_UNTIL_KILLED, path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        reported = [process.stdout.readline() for _ in range(100)]
        with locked(path):
            while not spools(path):
                reported.append(process.stdout.readline())
            reported += [process.stdout.readline() for _ in range(100)]
            process.send_signal(signal.SIGKILL)
            reported += process.stdout.read().splitlines(keepends=True)
    assert len(spools(path)) == 1

    async def start() -> None:
        async with opened(path) as ledger:
            await drained(ledger)

    copy = path.with_name("copy")
    copy.write_bytes(spools(path)[0].read_bytes())
    asyncio.run(start())
    once = requests(path)
    assert spools(path) == []
    # A crash after the commit, before the file is deleted: the file is read again.
    copy.rename(path.with_name(f"{path.name}.spool-again"))
    asyncio.run(start())
    assert requests(path) == once
    for tenant, count in once.items():
        # One more booking may have been safe, but not reported.
        assert count - reported.count(f"{tenant}\n".encode()) in (0, 1)


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


def test_a_full_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither database nor spool can grow: bookings stay in memory, until there are too many for that."""
    monkeypatch.setattr(ledger_module, "MAX_BOOKINGS_IN_MEMORY", 10)

    async def book() -> None:
        async with opened(path) as ledger:
            await ledger.book(booking("acme"))
            # Python ignores SIGXFSZ, so that writing fails with EFBIG.
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
            try:
                for number in range(12):
                    with pytest.raises(DatabaseUnavailable) if number >= 10 else nullcontext():
                        ledger.check_room()
                    await ledger.book(booking("acme"))
                assert (ledger.waiting, ledger.spooled) == (12, 0)
                # Requests are authenticated as before.
                await ledger._store.run(lambda store: store.list())
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
            await drained(ledger)
            ledger.check_room()

    asyncio.run(book())
    assert requests(path) == {"acme": 13}
    assert spools(path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")
def test_a_full_file_system(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder], check=False).returncode:
        pytest.skip("this container may not mount")
    path = folder / "faasmoe.db"

    async def book() -> None:
        async with opened(path) as ledger:
            await ledger.book(booking("acme"))
            with (folder / "filler").open("wb", buffering=0) as filler, suppress(OSError):
                while True:
                    filler.write(bytes(4096))
            for number in range(300):
                await ledger.book(booking(f"tenant-{number}"))
            assert ledger.waiting > 0
            (folder / "filler").unlink()
            await drained(ledger)

    try:
        asyncio.run(book())
        assert requests(path) == {"acme": 1, **{f"tenant-{number}": 1 for number in range(300)}}
        assert spools(path) == []
    finally:
        subprocess.run(["umount", folder], check=True)


def test_usage_that_nothing_takes_is_logged_at_the_end(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def book() -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            async with opened(path) as ledger:
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
                await ledger.book(booking("acme"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    asyncio.run(book())
    assert "not booked, since neither database nor disk take it: (Booking(tenant='acme'" in caplog.text


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


def test_a_damaged_line_costs_only_its_own_bookings(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path / "a")
    entries = [Entry("me", number, (booking(f"t{number}"),)) for number in range(1, 4)]
    for entry in entries:
        spool.append(entry)
    spool.close()
    content = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(content.replace(b't2"', b'tX"') + content[:50])
    (found,) = Spool.left_behind(tmp_path / "a")
    assert list(found.entries(0)) == [entries[0], entries[2]]
    found.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_spool_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "MAX_SPOOL_BYTES", 300)
    spool = Spool.create(tmp_path / "a")
    spool.append(Entry("me", 1, (booking("acme"),)))
    size = spool.path.stat().st_size
    with pytest.raises(OSError, match="and may have 300"):
        spool.append(Entry("me", 2, (booking("acme"),) * 3))
    assert spool.path.stat().st_size == size
    spool.close()


def test_a_database_that_cannot_be_opened(tmp_path: Path) -> None:
    async def book() -> None:
        async with opened(tmp_path):
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
