"""The ledger loses no booking and books none twice: killed, or without disk space."""

import asyncio
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing, nullcontext, suppress
from pathlib import Path

import pytest

from control_plane.errors import DatabaseUnavailable
from control_plane.tenancy.storage import ledger as ledger_module
from tests.support.ledgers import booking, drained, locked, opened, requests, spools

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("impatient")]

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
