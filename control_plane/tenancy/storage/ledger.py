"""Books usage from the event loop: whoever waits while one transaction is written shares the next."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from control_plane.errors import TenancyError
from control_plane.tenancy.storage.store_thread import StoreThread
from control_plane.tenancy.usage import Booking

RETRY_AFTER_SECONDS = (0.05, 0.2, 0.8)
"""Between the attempts at one transaction."""

_logger = logging.getLogger(__name__)


class Ledger:
    """Writes bookings with a store of its own."""

    def __init__(self, thread: StoreThread) -> None:
        self._thread = thread
        self._waiting: list[tuple[Booking, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, address: Path | str) -> AsyncIterator["Ledger"]:
        """A ledger over a database; all that it was given is written when the context ends.

        Raises `ConfigError` for a database that cannot be opened.
        """
        async with StoreThread.open(address, "ledger") as thread:
            ledger = cls(thread)
            try:
                yield ledger
            finally:
                await ledger._flush()

    async def book(self, booking: Booking) -> None:
        """Returns when the booking is committed; also without being waited for, it will be.

        Raises `TenancyError` when it could not be written, after some attempts.
        """
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((booking, future))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_waiting())
        await future

    async def _flush(self) -> None:
        while self._writer is not None:
            # Not awaited itself: to cancel who waits must not cancel what is written.
            await asyncio.wait([self._writer])

    async def _write_waiting(self) -> None:
        try:
            while self._waiting:
                together, self._waiting = self._waiting, []
                await self._settle(together)
        finally:
            # Those who came while one could not be written are not left waiting.
            self._writer = asyncio.create_task(self._write_waiting()) if self._waiting else None

    async def _settle(self, together: Sequence[tuple[Booking, asyncio.Future[None]]]) -> None:
        """Write bookings, and tell those who wait for them how it went."""
        problem: str | None = "the usage was not booked"
        try:
            problem = await self._write([booking for booking, _ in together])
        finally:
            # Who has gone away is not told.
            for future in (future for _, future in together if not future.done()):
                if problem is None:
                    future.set_result(None)
                else:
                    future.set_exception(TenancyError(problem))

    async def _write(self, bookings: Sequence[Booking]) -> str | None:
        """What kept the bookings from being written, also in the last attempt; None when they are."""
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
