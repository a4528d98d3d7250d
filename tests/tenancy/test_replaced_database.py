"""A database file that is replaced, overwritten, removed or damaged while a server has it open."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from control_plane.errors import DatabaseUnavailable, InvalidApiKey
from control_plane.tenancy.declared import DeclaredTenant
from control_plane.tenancy.storage.ledger import Ledger
from control_plane.tenancy.storage.store import TenantStore
from control_plane.tenancy.storage.store_thread import StoreThread
from control_plane.tenancy.tenants import Limits, Tenant
from control_plane.tenancy.usage import Booking
from tests.support.gateways.echo_gateway import asynchronous
from tests.support.ledgers import drained

DECLARED = DeclaredTenant("declared", Limits(rpm=5), key="a-key-that-somebody-chose")
USED = Booking("acme", 0.0, 1, 10, 5, 1.5, 0.25)

Replace = Callable[[Path, Path], object]


def rename(source: Path, path: Path) -> None:
    """As `mv`."""
    source.rename(path)


def overwrite(source: Path, path: Path) -> None:
    """As `cp`: the file keeps its inode."""
    inode = path.stat().st_ino
    shutil.copyfile(source, path)
    assert path.stat().st_ino == inode


def remove_and_copy(source: Path, path: Path) -> None:
    """As `rm` and `cp`."""
    path.unlink()
    shutil.copyfile(source, path)


def restore(source: Path, path: Path) -> None:
    """As `.restore` of the sqlite3 shell, which works through SQLite."""
    with closing(sqlite3.connect(source)) as backup, closing(sqlite3.connect(path)) as target:
        backup.backup(target)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "faasmoe.db"


def add(path: Path, name: str) -> str:
    with TenantStore.open(path) as store:
        return store.add(name, Limits(), operator=False)


def back_up(path: Path) -> Path:
    """A backup as docs/operations.md makes it."""
    backup = path.with_name("backup.db")
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(backup)) as target:
        source.backup(target)
    return backup


async def tenant_of(thread: StoreThread, key: str) -> Tenant:
    return await thread.run(lambda store: store.authenticate(key))


def rotate(path: Path, name: str) -> str:
    """A new key, made by another process, as `faasmoe tenants rotate-key` does."""
    options = ["rotate-key", name, "--database", str(path)]
    command = [sys.executable, "-m", "control_plane", "tenants", *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=60)
    return done.stdout.strip()


def integrity(path: Path) -> str:
    with closing(sqlite3.connect(path)) as reader:
        (found,) = reader.execute("PRAGMA integrity_check").fetchone()
        return str(found)


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[tuple[StoreThread, Ledger]]:
    async with (
        StoreThread.open(path, "tenants", [DECLARED]) as thread,
        Ledger.open(thread, path) as ledger,
    ):
        yield thread, ledger


@pytest.mark.parametrize("replace", [rename, overwrite, remove_and_copy, restore])
@asynchronous
async def test_a_backup_counts_from_the_next_request(path: Path, replace: Replace) -> None:
    """The key before the backup is valid again, the one after it is not; usage goes into the backup."""
    before = add(path, "acme")
    backup = back_up(path)
    async with serving(path) as (thread, ledger):
        for number in range(300):
            await ledger.book(Booking(f"tenant-{number}", 0.0, 1, 10, 5, 1.5, 0.25))
        after = rotate(path, "acme")
        assert (await tenant_of(thread, after)).name == "acme"
        with pytest.raises(InvalidApiKey):
            await tenant_of(thread, before)
        replace(backup, path)
        assert (await tenant_of(thread, before)).name == "acme"
        with pytest.raises(InvalidApiKey):
            await tenant_of(thread, after)
        # The backup was made before the server declared its tenants.
        assert DECLARED.key
        assert (await tenant_of(thread, DECLARED.key)).limits == DECLARED.limits
        await ledger.book(USED)
    assert integrity(path) == "ok"
    with TenantStore.open(path) as store:
        assert [usage.tenant for usage in store.usage(None, None)] == ["acme"]
    assert sorted(each.name for each in path.parent.iterdir() if each != backup) == ["faasmoe.db"]


@asynchronous
async def test_another_database_with_changes_that_are_not_merged(path: Path) -> None:
    """The former database's write-ahead log must not be merged into its successor."""
    former = add(path, "former")
    other = path.with_name("other.db")
    key = add(other, "other")
    async with serving(path) as (thread, _):
        assert (await tenant_of(thread, former)).name == "former"
        with closing(sqlite3.connect(path)) as writer:
            # This process holds the log open, so it is not merged.
            writer.execute("UPDATE tenants SET rpm = 77")
            writer.commit()
            assert path.with_name(f"{path.name}-wal").stat().st_size > 0
            other.rename(path)
            assert (await tenant_of(thread, key)).name == "other"
        with pytest.raises(InvalidApiKey):
            await tenant_of(thread, former)
    assert integrity(path) == "ok"


@asynchronous
async def test_a_file_overwritten_while_its_log_has_changes(path: Path) -> None:
    """Merged into the backup's pages, they would damage it."""
    before = add(path, "acme")
    backup = back_up(path)
    async with serving(path) as (thread, _):
        await thread.run(lambda store: [store.add(f"t{number}", Limits(), False) for number in range(500)])
        assert path.with_name(f"{path.name}-wal").stat().st_size > 0
        overwrite(backup, path)
        assert (await tenant_of(thread, before)).name == "acme"
        names = [tenant.name for tenant in await thread.run(lambda store: store.list())]
        assert names == ["acme", "declared"]
    assert integrity(path) == "ok"


@asynchronous
async def test_a_log_that_another_process_merges_for_long(path: Path) -> None:
    """Its first writes to the file must not be taken for another file: the log would lose its changes."""
    key = add(path, "acme")
    async with serving(path) as (thread, _):
        with closing(sqlite3.connect(path, isolation_level=None)) as merging:
            merging.execute("UPDATE tenants SET rpm = 77")
            # A process that merges has this lock. The log has its pages until the file has all of them.
            merging.execute("BEGIN IMMEDIATE")
            os.utime(path)
            with pytest.raises(DatabaseUnavailable):
                await tenant_of(thread, key)
            merging.execute("ROLLBACK")
            merging.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            assert (await tenant_of(thread, key)).limits.rpm == 77
    assert integrity(path) == "ok"


def damage(path: Path) -> None:
    path.write_bytes(b"no database " * 1000)


def damage_a_page(path: Path) -> None:
    """The header stays, so that the damage shows only when the tenants are read."""
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))


def empty(path: Path) -> None:
    os.truncate(path, 0)


def another_program(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE bookmarks (url TEXT)")


@pytest.mark.parametrize("spoil", [Path.unlink, damage, damage_a_page, empty, another_program])
@asynchronous
async def test_without_a_database_requests_are_refused_until_it_is_back(
    path: Path, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    key = add(path, "acme")
    backup = back_up(path)
    async with serving(path) as (thread, ledger):
        await ledger.book(USED)
        assert (await tenant_of(thread, key)).name == "acme"
        spoil(path)
        spoiled = path.read_bytes() if path.exists() else None
        for _ in range(3):
            with pytest.raises(DatabaseUnavailable) as caught:
                await tenant_of(thread, key)
            assert "/" not in str(caught.value)
            assert caught.value.retry_after == 1.0
        await ledger.book(USED)
        assert ledger.waiting == 1
        assert (path.read_bytes() if path.exists() else None) == spoiled
        backup.rename(path)
        assert (await tenant_of(thread, key)).name == "acme"
        await drained(ledger)
    with TenantStore.open(path) as store:
        assert [usage.requests for usage in store.usage("acme", None)] == [1]
    told = [record.getMessage() for record in caplog.records if record.name.endswith("store_thread")]
    assert len(told) == 2
    assert str(path) in told[0]
    assert told[1] == "the database can be used again"


@asynchronous
async def test_changes_of_the_command_line_keep_declared_tenants_as_they_are(path: Path) -> None:
    """They count at once, and until the next start: another process's change is no other database."""
    async with serving(path) as (thread, _):
        for rpm in (7, 8):
            with TenantStore.open(path) as other:
                other.update("declared", Limits(rpm=rpm), operator=False)
            found = await thread.run(lambda store: store.get("declared"))
            assert found.limits.rpm == rpm


@asynchronous
async def test_reopening_again_and_again_leaves_no_files_open(path: Path) -> None:
    key = add(path, "acme")
    async with serving(path) as (thread, _):
        await tenant_of(thread, key)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(50):
            shutil.copyfile(back_up(path), path.with_name("new"))
            path.with_name("new").rename(path)
            assert (await tenant_of(thread, key)).name == "acme"
        assert len(os.listdir("/proc/self/fd")) <= before
