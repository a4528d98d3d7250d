"""Runs an aiohttp application on an address; says why one cannot be reached."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
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
            raise ConfigError(f"cannot listen on {host}:{port}: {_os_problem(error)}") from error
        yield URL.build(scheme="http", host=host, port=runner.addresses[0][1])
    finally:
        await runner.cleanup()


def connection_problem(error: Exception) -> str:
    """Why a request had no answer, in a few words: aiohttp's own are for its developers."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return _os_problem(error.os_error)
    return str(error) or type(error).__name__


def _os_problem(error: OSError) -> str:
    """The system's own word, without what libraries put around it; negative numbers are the resolver's."""
    return os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
