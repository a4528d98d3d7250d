"""Runs an aiohttp application on an address."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from yarl import URL

from control_plane.errors import ConfigError

SHUTDOWN_SECONDS = 5.0
"""How long answers in progress may take once the application is to stop."""


@asynccontextmanager
async def serving(app: web.Application, host: str, port: int) -> AsyncIterator[URL]:
    """Yields the application's address; port 0 takes a free one. Raises `ConfigError` for a port in use."""
    runner = web.AppRunner(
        app,
        access_log=None,
        handle_signals=False,
        shutdown_timeout=SHUTDOWN_SECONDS,
        # A client that goes away takes its request with it.
        handler_cancellation=True,
    )
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
        yield URL.build(scheme="http", host=host, port=runner.addresses[0][1])
    finally:
        await runner.cleanup()
