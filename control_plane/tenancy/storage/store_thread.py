"""A store of tenants for the event loop: a separate thread waits for the database."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import TypeVar

from control_plane.tenancy.storage.store import TenantStore

Result = TypeVar("Result")


class StoreThread:
    """Runs functions of the store in one thread, one after the other."""

    def __init__(self, store: TenantStore, thread: ThreadPoolExecutor) -> None:
        self._store = store
        self._thread = thread

    @classmethod
    @asynccontextmanager
    async def open(cls, address: Path | str, name: str) -> AsyncIterator["StoreThread"]:
        """Open the store in a new thread, which ends with the context. Raises `ConfigError`."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, name) as thread:
            # A SQLite connection may be used only in the thread that has opened it.
            stack = ExitStack()
            store = await loop.run_in_executor(thread, stack.enter_context, TenantStore.open(address))
            try:
                yield cls(store, thread)
            finally:
                await loop.run_in_executor(thread, stack.close)

    async def run(self, work: Callable[[TenantStore], Result]) -> Result:
        """Call `work` with the store in the thread. Returns its result, or raises its error."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, self._store)
