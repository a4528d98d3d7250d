"""Writes usage from the event loop. Bookings that arrive during one transaction share the next one."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from control_plane.errors import TenancyError
from control_plane.tenancy.storage.store_thread import StoreThread
from control_plane.tenancy.usage import Booking

RETRY_AFTER_SECONDS = (0.05, 0.2, 0.8)
"""Seconds between the attempts at one transaction."""

_logger = logging.getLogger(__name__)


class Ledger:
    """Writes bookings to the database, in the background and in batches."""

    def __init__(self, thread: StoreThread) -> None:
        self._thread = thread
        self._waiting: list[tuple[Booking, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, address: Path | str) -> AsyncIterator["Ledger"]:
        """Open a ledger over a database. Leaving the context writes all pending bookings.

        Raises `ConfigError` for a database that cannot be opened.
        """
        async with StoreThread.open(address, "ledger") as thread:
            ledger = cls(thread)
            try:
                yield ledger
            finally:
                await ledger._flush()

    async def book(self, booking: Booking) -> None:
        """Write a booking, and wait until it is committed. It is written even if the caller is cancelled.

        Raises `TenancyError` if all attempts fail.
        """
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((booking, future))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_waiting())
        await future

    async def _flush(self) -> None:
        while self._writer is not None:
            # `wait` does not cancel the writer when its caller is cancelled.
            await asyncio.wait([self._writer])

    async def _write_waiting(self) -> None:
        try:
            while self._waiting:
                together, self._waiting = self._waiting, []
                await self._settle(together)
        finally:
            # Bookings that arrived during a failed transaction need a new writer.
            self._writer = asyncio.create_task(self._write_waiting()) if self._waiting else None

    async def _settle(self, together: Sequence[tuple[Booking, asyncio.Future[None]]]) -> None:
        """Write bookings, and resolve the futures of their callers."""
        problem: str | None = "the usage was not booked"
        try:
            problem = await self._write([booking for booking, _ in together])
        finally:
            # A caller that was cancelled has a future that is done.
            for future in (future for _, future in together if not future.done()):
                if problem is None:
                    future.set_result(None)
                else:
                    future.set_exception(TenancyError(problem))

    async def _write(self, bookings: Sequence[Booking]) -> str | None:
        """Write bookings, with several attempts. Returns the last attempt's error, or None on success."""
        pauses = iter(RETRY_AFTER_SECONDS)
        while True:
            try:
                await self._thread.run(lambda store: store.book(bookings))
                return None
            except TenancyError as error:
                pause = next(pauses, None)
                if pause is None:
                    _logger.error("%d bookings are lost: %s", len(bookings), error)
                    return str(error)
                _logger.warning("%d bookings are tried again in %g s: %s", len(bookings), pause, error)
                await asyncio.sleep(pause)
