"""Keeps usage safe, for the event loop: in the database, or until that is possible in a backlog.

Bookings that arrive during one transaction share the next one.
"""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

from control_plane.errors import DatabaseUnavailable, TenancyError
from control_plane.files import state_folder
from control_plane.tenancy.storage.backlog import Backlog, count
from control_plane.tenancy.storage.database import is_postgres
from control_plane.tenancy.storage.store_thread import StoreThread
from control_plane.tenancy.usage import Booking, Entry

PATIENCE_SECONDS = 1.0
"""How long the database may take for an entry before it is written to the backlog instead."""
MAX_BOOKINGS_IN_MEMORY = 100_000
"""With more bookings that are in no file either, the server takes no more requests."""
FIRST_PAUSE_SECONDS = 0.1
LAST_PAUSE_SECONDS = 10.0
"""Pauses between attempts to write the backlog to the database; each is twice the one before."""

_logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class Ledger:
    """Writes bookings in the background, in batches."""

    def __init__(self, store: StoreThread, backlog: Backlog, files: ThreadPoolExecutor) -> None:
        self._store = store
        self._backlog = backlog
        self._files = files
        self._number = 0
        self._arrived: list[tuple[Booking, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None
        self._replayer: asyncio.Task[None] | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, store: StoreThread, address: Path | str) -> AsyncIterator["Ledger"]:
        """Open a ledger over the store's database, and write what earlier processes could not.

        Leaving the context makes all bookings safe, or logs them.
        """
        loop = asyncio.get_running_loop()
        async with _booking_thread(store, address) as thread:
            with ThreadPoolExecutor(1, "spool") as files:
                backlog = await loop.run_in_executor(files, Backlog, spool_prefix(address), thread.writer)
                ledger = cls(thread, backlog, files)
                ledger._replay_backlog()
                try:
                    yield ledger
                finally:
                    await ledger._close()

    @property
    def waiting(self) -> int:
        """Bookings that the database does not have yet, apart from those that are being written."""
        return self._backlog.waiting

    @property
    def spooled(self) -> int:
        """Bookings that were written to a file since the start."""
        return self._backlog.spooled

    def check_room(self) -> None:
        """Raise `DatabaseUnavailable` if the usage of more requests could not be kept."""
        if self._backlog.in_memory >= MAX_BOOKINGS_IN_MEMORY:
            raise DatabaseUnavailable("usage cannot be recorded now", LAST_PAUSE_SECONDS)

    async def book(self, booking: Booking) -> None:
        """Make a booking safe, and wait for that. It becomes so even if the caller is cancelled."""
        future = asyncio.get_running_loop().create_future()
        self._arrived.append((booking, future))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_arrived())
        await future

    async def _write_arrived(self) -> None:
        while self._arrived:
            together, self._arrived = self._arrived, []
            self._number += 1
            bookings = tuple(booking for booking, _ in together)
            await self._keep(Entry(self._store.writer, self._number, bookings))
            # A caller that was cancelled has a future that is done.
            for future in (future for _, future in together if not future.done()):
                future.set_result(None)
        self._writer = None

    async def _keep(self, entry: Entry) -> None:
        """Write an entry to the database, or to the backlog if that has entries already or it takes long."""
        if not self._backlog:
            try:
                # The transaction may succeed after the time limit: an entry is booked once all the same.
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await self._book([entry])
                return
            except (TenancyError, TimeoutError) as error:
                _logger.warning("usage waits for the database: %s", error or "it takes too long")
        await self._with_files(lambda: self._backlog.add(entry))
        self._replay_backlog()

    def _replay_backlog(self) -> None:
        if self._backlog and self._replayer is None:
            self._replayer = asyncio.create_task(self._replay())

    async def _replay(self) -> None:
        """Write the backlog to the database, with growing pauses after failures."""
        pause = FIRST_PAUSE_SECONDS
        booked = 0
        while self._backlog:
            try:
                booked += await self._replay_some()
                pause = FIRST_PAUSE_SECONDS
            except (TenancyError, OSError) as error:
                _logger.debug("%d bookings wait: %s", self.waiting, error)
                await self._with_files(self._backlog.save)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LAST_PAUSE_SECONDS)
        _logger.warning("the database has all usage again: %d bookings had waited", booked)
        self._replayer = None

    async def _replay_some(self) -> int:
        """Write the oldest entries to the database; returns the number of their bookings."""
        entries = await self._with_files(self._backlog.first)
        if entries:
            await self._book(entries)
            await self._with_files(lambda: self._backlog.drop(entries))
        return count(entries)

    async def _book(self, entries: Sequence[Entry]) -> None:
        await self._store.run(lambda store: store.book(entries))
        self._store.merge_soon()

    async def _with_files(self, work: Callable[[], Result]) -> Result:
        """Do work that waits for the disk."""
        return await asyncio.get_running_loop().run_in_executor(self._files, work)

    async def _close(self) -> None:
        """Make all bookings safe: a last attempt for those in memory, and a log line if that fails, too."""
        while self._writer is not None:
            # `wait` does not cancel the writer when its caller is cancelled.
            await asyncio.wait([self._writer])
        if self._replayer:
            self._replayer.cancel()
            await asyncio.wait([self._replayer])
        await self._with_files(self._backlog.save)
        with suppress(TenancyError, OSError, TimeoutError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                while self._backlog:
                    await self._replay_some()
        lost = await self._with_files(self._backlog.close)
        if self._backlog.waiting > count(lost):
            _logger.warning("%d bookings wait for the next start", self._backlog.waiting - count(lost))
        for entry in lost:
            _logger.error("not booked, since neither database nor disk take it: %s", entry.bookings)


@asynccontextmanager
async def _booking_thread(store: StoreThread, address: Path | str) -> AsyncIterator[StoreThread]:
    """The thread that books usage. With PostgreSQL, bookings must not wait behind requests for admission.

    A SQLite file has one connection in this process: a second one would keep what SQLite knows of a file that
    is replaced.
    """
    if not is_postgres(address):
        yield store
        return
    async with StoreThread.open(address, "ledger") as own:
        yield own


def spool_prefix(address: Path | str) -> Path:
    """The beginning of the paths of a database's spool files: beside a file, or in the state folder."""
    if isinstance(address, Path):
        return address.with_name(f"{address.name}.spool-")
    return state_folder() / f"postgres-{hashlib.sha256(address.encode()).hexdigest()[:16]}.spool-"
