"""Keeps the files and batches of all tenants within bounds, without blocking the event loop."""

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TypeVar

from control_plane.api.batches.records import BatchRecord, FileRecord, Purpose
from control_plane.api.batches.storage import Storage
from control_plane.errors import BadRequest, QueueFull, StorageFull, UnknownObject
from control_plane.tenancy.tenants import Tenant

MAX_FILE_BYTES = 100 << 20
MAX_FILES = 1000
"""Most files of a tenant."""
MAX_BATCHES = 200
"""Most batches of a tenant, including those that have ended."""
MAX_UPLOADS = 4
"""Most uploads of a tenant at once."""
TENANT_SHARE = 0.5
"""The largest share of the storage that one tenant may use."""
KEPT_SECONDS = 30 * 24 * 3600
"""How long files, and batches with their answers, are kept."""
WINDOW_SECONDS = 24 * 3600
RETRY_SECONDS = 1.0

Record = TypeVar("Record", FileRecord, BatchRecord)


class Shelf:
    """The stored files and batches, and the bytes that each tenant uses.

    Tenants cannot see those of others: methods raise `UnknownObject` for an id that the tenant does not have.
    """

    def __init__(self, storage: Storage, max_bytes: int, clock: Callable[[], float] = time.time) -> None:
        """Reads the stored records. `max_bytes` limits the size of all contents together."""
        self.storage = storage
        self._max_bytes = max_bytes
        self._clock = clock
        files, batches = storage.load()
        self._files = {file.id: file for file in files}
        self._batches = {batch.id: batch for batch in batches}
        self._used: Counter[str] = Counter()
        for file in files:
            self._used[file.tenant] += file.nbytes
        for batch in self.open_batches:
            for file_id in {batch.output_id, batch.error_id} - self._files.keys():
                self._used[batch.tenant] += storage.unpublished_bytes(batch.tenant, file_id)
        self._uploads: Counter[str] = Counter()

    @property
    def now(self) -> int:
        """The present Unix time."""
        return int(self._clock())

    @property
    def open_batches(self) -> list[BatchRecord]:
        """The batches that have not ended, oldest first."""
        return sorted(
            (batch for batch in self._batches.values() if batch.is_open), key=lambda each: each.created
        )

    def file(self, tenant: Tenant, file_id: str) -> FileRecord:
        """A file of the tenant."""
        return self._own(self._files, tenant, file_id, "file")

    def batch(self, tenant: Tenant, batch_id: str) -> BatchRecord:
        """A batch of the tenant."""
        return self._own(self._batches, tenant, batch_id, "batch")

    def files(self, tenant: Tenant) -> list[FileRecord]:
        """The tenant's files, newest first."""
        return self._all(self._files.values(), tenant)

    def batches(self, tenant: Tenant) -> list[BatchRecord]:
        """The tenant's batches, newest first."""
        return self._all(self._batches.values(), tenant)

    async def upload(self, tenant: Tenant, filename: str, chunks: AsyncIterator[bytes]) -> FileRecord:
        """Store a file. Raises `BadRequest`, `QueueFull` or `StorageFull`."""
        if len(self.files(tenant)) + self._uploads[tenant.name] >= MAX_FILES:
            raise StorageFull(f"the tenant has {MAX_FILES} files: delete some")
        if self._uploads[tenant.name] >= MAX_UPLOADS:
            raise QueueFull(f"the tenant has {MAX_UPLOADS} uploads in progress", RETRY_SECONDS)
        file_id, nbytes = f"file-{secrets.token_hex(16)}", 0
        self._uploads[tenant.name] += 1
        try:
            async for chunk in chunks:
                if nbytes + len(chunk) > MAX_FILE_BYTES:
                    raise BadRequest(f"file: at most {MAX_FILE_BYTES} bytes", "file")
                self._take(tenant.name, len(chunk))
                nbytes += len(chunk)
                await asyncio.to_thread(self.storage.append, tenant.name, file_id, chunk, False)
            if not nbytes:
                raise BadRequest("file: is empty", "file")
            return await self._publish(tenant.name, file_id, filename, "batch", nbytes)
        except BaseException:
            self._used[tenant.name] -= nbytes
            self.storage.discard(tenant.name, file_id)
            raise
        finally:
            self._uploads[tenant.name] -= 1

    async def delete(self, tenant: Tenant, file_id: str) -> None:
        """Delete a file. Raises `BadRequest` if a batch needs it."""
        file = self.file(tenant, file_id)
        if any(batch.input_file_id == file_id for batch in self.open_batches):
            raise BadRequest("the file is the input of a batch that has not ended: cancel it first")
        await self._remove_file(file)

    async def add(
        self, tenant: Tenant, endpoint: str, input_file_id: str, metadata: dict[str, str] | None
    ) -> BatchRecord:
        """Create a batch. Raises `StorageFull`."""
        if len(self.batches(tenant)) >= MAX_BATCHES:
            raise StorageFull(f"the tenant has {MAX_BATCHES} batches, which are kept for 30 days")
        now = self.now
        batch = BatchRecord(
            id=f"batch-{secrets.token_hex(16)}",
            tenant=tenant.name,
            endpoint=endpoint,
            input_file_id=self.file(tenant, input_file_id).id,
            output_id=f"file-{secrets.token_hex(16)}",
            error_id=f"file-{secrets.token_hex(16)}",
            created=now,
            expires=now + WINDOW_SECONDS,
            metadata=metadata,
        )
        await self.save(batch)
        self._batches[batch.id] = batch
        return batch

    async def save(self, batch: BatchRecord) -> None:
        """Write a batch's state to the disk. Raises `StorageFull`."""
        await asyncio.to_thread(self.storage.save, batch)

    async def add_answer(self, batch: BatchRecord, file_id: str, line: bytes) -> None:
        """Write an answer of a batch to the disk. Raises `StorageFull`."""
        self._take(batch.tenant, len(line))
        try:
            await asyncio.to_thread(self.storage.append, batch.tenant, file_id, line, True)
        except BaseException:
            self._used[batch.tenant] -= len(line)
            raise

    async def answers(self, batch: BatchRecord, file_id: str) -> list[bytes]:
        """The answers of a batch that an earlier process wrote."""
        return await asyncio.to_thread(self.storage.whole_lines, batch.tenant, file_id)

    async def publish_answers(self, batch: BatchRecord, file_id: str, name: str) -> str | None:
        """Turn the answers of a batch into a file; returns its id, or None if there are no answers."""
        nbytes = await asyncio.to_thread(self.storage.unpublished_bytes, batch.tenant, file_id)
        if not nbytes:
            return None
        filename = f"{batch.id}_{name}.jsonl"
        return (await self._publish(batch.tenant, file_id, filename, "batch_output", nbytes)).id

    async def remove_old(self) -> None:
        """Remove expired files, and batches that have ended and are too old."""
        needed = {batch.input_file_id for batch in self.open_batches}
        for file in [
            file for file in self._files.values() if file.expires <= self.now and file.id not in needed
        ]:
            await self._remove_file(file)
        for batch in list(self._batches.values()):
            if not batch.is_open and batch.created + KEPT_SECONDS <= self.now:
                del self._batches[batch.id]
                await asyncio.to_thread(self.storage.remove, batch)

    async def _publish(
        self, tenant: str, file_id: str, filename: str, purpose: Purpose, nbytes: int
    ) -> FileRecord:
        now = self.now
        file = FileRecord(file_id, tenant, filename, purpose, nbytes, now, now + KEPT_SECONDS)
        await asyncio.to_thread(self.storage.publish, file)
        self._files[file_id] = file
        return file

    async def _remove_file(self, file: FileRecord) -> None:
        if self._files.pop(file.id, None):
            self._used[file.tenant] -= file.nbytes
            await asyncio.to_thread(self.storage.remove, file)

    def _take(self, tenant: str, nbytes: int) -> None:
        if self._used[tenant] + nbytes > self._max_bytes * TENANT_SHARE:
            raise StorageFull("the tenant's files use all the room that it may have: delete some")
        if self._used.total() + nbytes > self._max_bytes:
            raise StorageFull("there is no room for more files on this server")
        self._used[tenant] += nbytes

    def _own(self, records: dict[str, Record], tenant: Tenant, wanted: str, kind: str) -> Record:
        record = records.get(wanted)
        if record is None or not is_of(record, tenant):
            raise UnknownObject(f"there is no {kind} {wanted[:80]!r}")
        return record

    def _all(self, records: Iterable[Record], tenant: Tenant) -> list[Record]:
        own = [record for record in records if is_of(record, tenant)]
        return sorted(own, key=lambda record: (record.created, record.id), reverse=True)


def is_of(record: FileRecord | BatchRecord, tenant: Tenant) -> bool:
    """Whether a tenant owns a record. Records of an earlier tenant with the same name do not count."""
    return record.tenant == tenant.name and record.created >= int(tenant.created)
