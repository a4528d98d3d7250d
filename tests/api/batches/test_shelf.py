"""What is kept of files and batches: bounds, expiry, and what a crash leaves behind."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from control_plane.api.batches import shelf as bounds
from control_plane.api.batches.shelf import KEPT_SECONDS, Shelf
from control_plane.api.batches.storage import Storage
from control_plane.errors import BadRequest, ConfigError, StorageFull, UnknownObject
from control_plane.tenancy.tenants import Limits, Tenant
from tests.support.gateways.echo_gateway import asynchronous

ACME, BOB = Tenant("acme", Limits()), Tenant("bob", Limits())


class Clock:
    """A clock that tests set."""

    now = 1_796_000_000.0

    def __call__(self) -> float:
        return self.now


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def broken(part: bytes) -> AsyncIterator[bytes]:
    yield part
    raise ConnectionResetError


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


@asynchronous
async def test_room_is_shared_and_given_back(tmp_path: Path) -> None:
    with Storage.open(tmp_path / "batches") as storage:
        shelf = Shelf(storage, 1000)
        file = await shelf.upload(ACME, "a", chunks(b"x" * 300, b"y" * 200))
        assert storage.content("acme", file.id).read_bytes() == b"x" * 300 + b"y" * 200
        with pytest.raises(StorageFull, match="the tenant's files"):
            await shelf.upload(ACME, "b", chunks(b"x"))
        await shelf.upload(BOB, "b", chunks(b"x" * 500))
        with pytest.raises(StorageFull, match="on this server"):
            await shelf.upload(Tenant("eve", Limits()), "c", chunks(b"x"))
        await shelf.delete(ACME, file.id)
        for _ in range(3):
            with pytest.raises(ConnectionResetError):
                await shelf.upload(ACME, "c", broken(b"x" * 400))
            with pytest.raises(StorageFull):
                await shelf.upload(ACME, "c", chunks(b"x" * 400, b"x" * 400))
        assert len(names(tmp_path)) == 2
        await shelf.upload(ACME, "d", chunks(b"x" * 500))


@asynchronous
async def test_a_restart_finds_what_was_complete_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "batches"
    with Storage.open(folder) as storage:
        shelf = Shelf(storage, 1000)
        file = await shelf.upload(ACME, "a", chunks(b"{}"))
        batch = await shelf.add(ACME, "/v1/completions", file.id, {"a": "b"})
        await shelf.add_answer(batch, batch.output_id, b"one\n")
        with pytest.raises(ConfigError, match="another server does"), Storage.open(folder):
            pass
    known = names(folder)
    for name in ("file-0.partial", "file-1.jsonl", ".file-2.json.x", "file-3.json", "batch-4.json"):
        (folder / "acme" / name).write_text("half a")
    with (folder / "acme" / f"{batch.output_id}.partial").open("ab") as partial:
        partial.write(b"half a")
    with Storage.open(folder) as storage:
        shelf = Shelf(storage, 1000)
        assert names(folder) == known | {"file-3.json", "batch-4.json"}
        assert shelf.files(ACME) == [file]
        assert shelf.batches(ACME) == [batch]
        assert await shelf.answers(batch, batch.output_id) == [b"one"]
        with pytest.raises(UnknownObject):
            shelf.file(BOB, file.id)
        with pytest.raises(BadRequest, match="has not ended"):
            await shelf.delete(ACME, file.id)
        assert await shelf.publish_answers(batch, batch.output_id, "output") == batch.output_id
        assert await shelf.publish_answers(batch, batch.error_id, "error") is None
        # A crash between these two comes here again.
        assert await shelf.publish_answers(batch, batch.output_id, "output") == batch.output_id
        assert storage.content("acme", batch.output_id).read_bytes() == b"one\n"


@asynchronous
async def test_what_is_old_is_removed(tmp_path: Path) -> None:
    clock = Clock()
    with Storage.open(tmp_path / "batches") as storage:
        shelf = Shelf(storage, 1000, clock)
        file = await shelf.upload(ACME, "a", chunks(b"{}"))
        batch = await shelf.add(ACME, "/v1/completions", file.id, None)
        clock.now += KEPT_SECONDS
        await shelf.remove_old()
        assert shelf.batches(ACME) == [batch]
        assert shelf.files(ACME) == [file]
        batch.enter("completed", shelf.now)
        await shelf.remove_old()
        assert names(tmp_path) == set()
        assert not shelf.batches(ACME)
        assert not shelf.files(ACME)


@asynchronous
async def test_numbers_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAX_FILES", "MAX_BATCHES"):
        monkeypatch.setattr(bounds, name, 2)
    monkeypatch.setattr(bounds, "MAX_FILE_BYTES", 10)
    with Storage.open(tmp_path / "batches") as storage:
        shelf = Shelf(storage, 1000)
        with pytest.raises(BadRequest, match="at most 10 bytes"):
            await shelf.upload(ACME, "a", chunks(b"x" * 11))
        with pytest.raises(BadRequest, match="is empty"):
            await shelf.upload(ACME, "a", chunks())
        files = [await shelf.upload(ACME, "a", chunks(b"{}")) for _ in range(2)]
        with pytest.raises(StorageFull, match="has 2 files"):
            await shelf.upload(ACME, "a", chunks(b"{}"))
        for _ in range(2):
            await shelf.add(ACME, "/v1/completions", files[0].id, None)
        with pytest.raises(StorageFull, match="has 2 batches"):
            await shelf.add(ACME, "/v1/completions", files[0].id, None)


@asynchronous
async def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    with Storage.open(tmp_path / "batches") as storage:
        shelf = Shelf(storage, 1000)
        with monkeypatch.context() as patch:
            patch.setattr("control_plane.api.batches.storage.os.write", full)
            with pytest.raises(StorageFull, match="cannot write to its disk: No space left on device"):
                await shelf.upload(ACME, "a", chunks(b"{}"))
        assert names(tmp_path) == set()
        await shelf.upload(ACME, "a", chunks(b"x" * 500))
