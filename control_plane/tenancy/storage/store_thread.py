"""A store of tenants for the event loop: a separate thread waits for the database."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from control_plane.errors import DatabaseUnavailable
from control_plane.tenancy.declared import DeclaredTenant
from control_plane.tenancy.storage.database import DatabaseFault
from control_plane.tenancy.storage.store import TenantStore

LOCK_SECONDS = 0.1
"""Most seconds for which a server waits for a lock of another process: other requests wait behind it."""
RETRY_SECONDS = 1.0
"""Retry-After in seconds while the database cannot be used."""

_logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class StoreThread:
    """Runs functions of the store in one thread, one after the other.

    Notices when the database is another one, and uses that from then on, with the declared tenants.
    """

    def __init__(
        self, store: TenantStore, thread: ThreadPoolExecutor, declared: Sequence[DeclaredTenant]
    ) -> None:
        """`declared` are the tenants of the server's config file."""
        self.writer = uuid4().hex
        """Names this server in the database."""
        self._store = store
        self._thread = thread
        self._declared = declared
        self._is_usable = True
        self._is_declared = False
        self._merging = False

    @classmethod
    @asynccontextmanager
    async def open(
        cls, address: Path | str, name: str, declared: Sequence[DeclaredTenant] = ()
    ) -> AsyncIterator["StoreThread"]:
        """Open the store in a new thread, which ends with the context. Raises `ConfigError`."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, name) as thread:
            # A SQLite connection may be used only in the thread that has opened it.
            stack = ExitStack()
            store = await loop.run_in_executor(thread, stack.enter_context, TenantStore.open(address))
            try:
                opened = cls(store, thread, declared)
                await loop.run_in_executor(thread, opened._begin)
                yield opened
            finally:
                await loop.run_in_executor(thread, stack.close)

    async def run(self, work: Callable[[TenantStore], Result]) -> Result:
        """Call `work` with the store in the thread. Returns its result, or raises its error.

        Raises `DatabaseUnavailable`, which tells clients no details, if the database cannot be used.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._work, work)

    def merge_soon(self) -> None:
        """After writing: have the thread call `Database.merge`, for which nobody waits."""
        if not self._merging:
            self._merging = True
            self._thread.submit(self._merge)

    # The methods below run in the thread.

    def _begin(self) -> None:
        self._declare()
        self._store.database.merge()
        self._store.database.limit_waits(LOCK_SECONDS)

    def _work(self, work: Callable[[TenantStore], Result]) -> Result:
        try:
            if self._store.database.refresh():
                self._is_declared = False
            if not self._is_declared:
                self._declare()
            result = work(self._store)
        except DatabaseFault as fault:
            if self._is_usable:
                _logger.error("usage is kept aside, and requests may be refused: %s", fault)
            self._is_usable = False
            raise DatabaseUnavailable("the server cannot use its database now", RETRY_SECONDS) from fault
        if not self._is_usable:
            _logger.warning("the database can be used again")
            self._is_usable = True
        return result

    def _declare(self) -> None:
        self._store.declare(self._declared, self.writer)
        self._is_declared = True

    def _merge(self) -> None:
        self._merging = False
        with suppress(DatabaseFault):
            self._store.database.merge()
