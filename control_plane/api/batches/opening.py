"""Opens files and batches for a server: their folder, their routes, and what runs them."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from aiohttp import web

from control_plane.api.batches.endpoints import ENDPOINTS
from control_plane.api.batches.routes import BatchRoutes
from control_plane.api.batches.runner import BatchRunner
from control_plane.api.batches.shelf import Shelf
from control_plane.api.batches.storage import Storage, batch_folder
from control_plane.api.routes import Api, add_routes
from control_plane.errors import ConfigError

logger = logging.getLogger(__name__)


@asynccontextmanager
async def opened_batches(
    app: web.Application, api: Api, database: Path | str, max_bytes: int
) -> AsyncIterator[BatchRunner | None]:
    """Add the routes of files and batches to the application; yields what runs the batches.

    Yields None without batches: `max_bytes` of disk is 0, or their folder, which is beside the database,
    cannot be used.
    """
    if not max_bytes:
        yield None
        return
    with ExitStack() as stack:
        try:
            storage = stack.enter_context(Storage.open(batch_folder(database)))
        except ConfigError as error:
            # For example, a second server with the same database still serves other requests.
            logger.warning("no files and batches: %s", error)
            yield None
            return
        shelf = await asyncio.to_thread(Shelf, storage, max_bytes)
        tenant_of = api.authentication.served
        fingerprint = api.generation.system_fingerprint
        runner = BatchRunner(shelf, api.service, api.drain, tenant_of, ENDPOINTS, api.models, fingerprint)
        add_routes(app, BatchRoutes(api.authentication, shelf, runner, api.models.default).routes())
        yield runner
