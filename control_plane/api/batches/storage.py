"""The folder in which files and batches are kept: a folder for each tenant, for the server's user only.

    TENANT/file-ID.jsonl    content of a file; file-ID.json describes it, and is written last
    TENANT/file-ID.partial  answers of a batch that has not ended, or a file that is being uploaded
    TENANT/batch-ID.json    state of a batch

After a crash, the next start recognises incomplete files by their names, and deletes them.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from control_plane.api.batches.records import BatchRecord, FileRecord
from control_plane.errors import ConfigError, StorageFull
from control_plane.files import state_folder, write_atomically


def batch_folder(address: Path | str) -> Path:
    """The folder for files and batches: beside a SQLite database, or in the state folder for PostgreSQL."""
    if isinstance(address, Path):
        return address.with_name(f"{address.name}.batches")
    return state_folder() / f"postgres-{hashlib.sha256(address.encode()).hexdigest()[:16]}.batches"


Record = TypeVar("Record", FileRecord, BatchRecord)


class Storage:
    """Reads and writes the folder. Methods block, and raise `StorageFull` if the disk takes no more data.

    Tenants' names are safe as names of folders: see `check_name`. Ids are made by the server.
    """

    def __init__(self, folder: Path) -> None:
        """Use `open` instead."""
        self._folder = folder

    @classmethod
    @contextmanager
    def open(cls, folder: Path) -> Iterator["Storage"]:
        """Open and lock a folder, and create it if it is missing. Raises `ConfigError`."""
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            raise ConfigError(f"cannot use {folder} for batches: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield cls(folder)
        except BlockingIOError as error:
            raise ConfigError(f"cannot use {folder} for batches: another server does") from error
        finally:
            os.close(descriptor)

    def load(self) -> tuple[list[FileRecord], list[BatchRecord]]:
        """Read all files and batches. Deletes contents and temporary files that belong to none of them."""
        files = list(self._records("*/file-*.json", FileRecord))
        batches = list(self._records("*/batch-*.json", BatchRecord))
        keep = {self.content(file.tenant, file.id) for file in files}
        for batch in batches:
            if batch.is_open:
                ids = (batch.output_id, batch.error_id)
                keep |= {path(batch.tenant, each) for each in ids for path in (self.partial, self.content)}
        for path in (
            *self._folder.glob("*/*.jsonl"),
            *self._folder.glob("*/*.partial"),
            *self._folder.glob("*/.*"),
        ):
            if path not in keep:
                path.unlink(missing_ok=True)
        return files, batches

    def content(self, tenant: str, file_id: str) -> Path:
        """The path of a file's content."""
        return self._folder / tenant / f"{file_id}.jsonl"

    def partial(self, tenant: str, file_id: str) -> Path:
        """The path of an incomplete content."""
        return self._folder / tenant / f"{file_id}.partial"

    def append(self, tenant: str, file_id: str, data: bytes, sync: bool) -> None:
        """Append to an incomplete content. After an error, the content is unchanged."""
        path = self.partial(tenant, file_id)
        with _translated_errors():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                size = os.fstat(descriptor).st_size
                try:
                    if (written := os.write(descriptor, data)) < len(data):
                        raise OSError(f"only {written} of {len(data)} bytes fit")
                    if sync:
                        os.fsync(descriptor)
                except OSError:
                    os.ftruncate(descriptor, size)
                    raise
            finally:
                os.close(descriptor)

    def whole_lines(self, tenant: str, file_id: str) -> list[bytes]:
        """The lines of an incomplete content. A part of a line that a crash left at its end is cut off."""
        path = self.partial(tenant, file_id)
        if not path.exists():
            return []
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(path, len(whole))
        return whole.splitlines()

    def unpublished_bytes(self, tenant: str, file_id: str) -> int:
        """The size of a content before it is published; 0 if there is none."""
        for path in (self.partial(tenant, file_id), self.content(tenant, file_id)):
            if path.exists():
                return path.stat().st_size
        return 0

    def publish(self, file: FileRecord) -> None:
        """Turn a complete content into a file. Safe to repeat after a crash."""
        with _translated_errors():
            partial = self.partial(file.tenant, file.id)
            if partial.exists():
                with partial.open("rb") as content:
                    os.fsync(content.fileno())
                os.replace(partial, self.content(file.tenant, file.id))
            self._write(file)

    def save(self, batch: BatchRecord) -> None:
        """Write a batch's state."""
        with _translated_errors():
            (self._folder / batch.tenant).mkdir(mode=0o700, exist_ok=True)
            self._write(batch)

    def remove(self, record: FileRecord | BatchRecord) -> None:
        """Remove a file, or a batch's state."""
        self._path(record).unlink(missing_ok=True)
        if isinstance(record, FileRecord):
            self.content(record.tenant, record.id).unlink(missing_ok=True)

    def discard(self, tenant: str, file_id: str) -> None:
        """Remove an incomplete content."""
        self.partial(tenant, file_id).unlink(missing_ok=True)

    def _path(self, record: FileRecord | BatchRecord) -> Path:
        return self._folder / record.tenant / f"{record.id}.json"

    def _write(self, record: FileRecord | BatchRecord) -> None:
        write_atomically(self._path(record), msgspec.json.encode(record))

    def _records(self, pattern: str, kind: type[Record]) -> Iterable[Record]:
        for path in self._folder.glob(pattern):
            try:
                record = msgspec.json.decode(path.read_bytes(), type=kind)
            except (OSError, ValueError):
                continue
            if path == self._path(record):
                yield record


@contextmanager
def _translated_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageFull(f"the server cannot write to its disk: {error.strerror or error}") from error
