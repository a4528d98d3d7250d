"""Runs an aiohttp application on an address; says why one cannot be reached."""

import asyncio
import logging
import os
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from control_plane.errors import ConfigError

logger = logging.getLogger(__name__)

SHUTDOWN_SECONDS = 5.0
"""How long answers in progress may take once the application is to stop."""
HEAD_SECONDS = 30.0
"""How long a connection may take to send a request's head: a new one, or after an answer."""
MAX_CONNECTIONS = 4096
"""Of one server, where the process may open so many files."""
_LEAST_CONNECTIONS = 64
_SERVERS = 2
"""In one process: the control plane, and perhaps the embedded gateway."""
_RESERVED_FILES = 768
"""For all else, and for what asyncio accepts before it is counted: some 128 connections at a time."""


@asynccontextmanager
async def serving(app: web.Application, host: str, port: int) -> AsyncIterator[URL]:
    """Yields the application's address; port 0 takes a free one. Raises `ConfigError` for a port in use."""
    runner = _Runner(
        app,
        access_log=None,
        handle_signals=False,
        shutdown_timeout=SHUTDOWN_SECONDS,
        # A client that goes away takes its request with it.
        handler_cancellation=True,
        keepalive_timeout=HEAD_SECONDS,
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


class _Runner(web.AppRunner):
    async def _make_server(self) -> web.Server:
        return _Server(await super()._make_server(), _max_connections())


class _Server(web.Server):
    """Bounds its connections: for one too many, the one that waits longest for a request gives way."""

    def __init__(self, server: web.Server, max_connections: int) -> None:
        """`server` is the application's own, in whose place this one is."""
        super().__init__(
            self._handle,
            request_factory=server.request_factory,
            handler_cancellation=server.handler_cancellation,
            **server._kwargs,
        )
        self._application = server.request_handler
        self._max_connections = max_connections
        self._waiting: dict[web.RequestHandler, asyncio.Transport] = {}
        """Connections without a request, from the one that waits longest."""
        self._asking: dict[web.RequestHandler, asyncio.Transport] = {}

    def __call__(self) -> web.RequestHandler:
        return _Handler(self, loop=self._loop, **self._kwargs)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        self._waiting[handler] = transport
        if len(self._waiting) + len(self._asking) > self._max_connections:
            # It may be the new one. Closed politely, it would wait for what is not read.
            self._waiting.pop(next(iter(self._waiting))).abort()

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        self._waiting.pop(handler, None)
        self._asking.pop(handler, None)
        super().connection_lost(handler, exc)

    def answered(self, handler: web.RequestHandler) -> None:
        """A connection waits for its next request."""
        if transport := self._asking.pop(handler, None):
            self._waiting[handler] = transport

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if transport := self._waiting.pop(request.protocol, None):
            self._asking[request.protocol] = transport
        return await self._application(request)


class _Handler(web.RequestHandler):
    """One connection. It neither repeats nor logs what of a request is no HTTP: that may hold a key."""

    __slots__ = ("_server",)

    def __init__(self, server: _Server, **settings: Any) -> None:
        super().__init__(server, **settings)
        self._server = server

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if isinstance(resp, web.HTTPExpectationFailed):
            resp = _refusal(resp.status, "Expect: only 100-continue is supported")
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self._server.answered(self)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status < 500:
            logger.debug("malformed HTTP from %s: %s", request.remote, type(exc).__name__)
        else:
            logger.error("a request failed", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        return _refusal(status, "malformed HTTP" if status < 500 else "internal error")

    def log_exception(self, *args: Any, **kw: Any) -> None:
        # Raised once more where an answer did without the body.
        if isinstance(error := kw.get("exc_info"), web.RequestPayloadError):
            logger.debug("a malformed body: %s", type(error.__cause__).__name__)
        else:
            super().log_exception(*args, **kw)


def _refusal(status: int, message: str) -> web.Response:
    """An error as OpenAI's API tells it, and the connection's last answer."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": None, "code": None}
    response = web.json_response({"error": error}, status=status)
    response.force_close()
    return response


def _max_connections() -> int:
    """How many a server may have; raises the process's limit of open files, as far as that is allowed."""
    wanted = _SERVERS * MAX_CONNECTIONS + _RESERVED_FILES
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    if files < wanted:
        files = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
    return max(_LEAST_CONNECTIONS, min(MAX_CONNECTIONS, (files - _RESERVED_FILES) // _SERVERS))


def _os_problem(error: OSError) -> str:
    """The system's own word, without what libraries put around it; negative numbers are the resolver's."""
    return os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
