"""Serves an aiohttp application at an address, and explains connection errors.

Two things that aiohttp has no setting for are done here: a bound on the number of connections, and JSON
errors that never repeat what a client sent. They use only public names of aiohttp, but some of these are
undocumented: `web.Server.request_handler`, and `web.RequestHandler` with its `finish_response`,
`handle_error` and `log_exception`. tests/test_http.py checks them; setup.cfg pins aiohttp below the next
version that is not known to have them.
"""

import asyncio
import concurrent.futures.thread  # noqa: F401
import encodings.idna  # noqa: F401
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from control_plane.errors import ConfigError
from functions.host.open_files import need_open_files, raise_open_files

# Python itself would import the modules that nothing here uses, but only in a request, when there may be no
# file left to open.

logger = logging.getLogger(__name__)

SHUTDOWN_SECONDS = 5.0
"""How long requests in progress may take once the application stops."""
KEEP_ALIVE_SECONDS = 130.0
"""How long a connection may take to send the head of its first or its next request.

A server that closes an idle connection may do so just when the client sends a request. So this is longer than
clients and proxies keep theirs: nginx 60 s, Go's programs 90 s, curl 118 s, Caddy 120 s. It costs little,
since the connection that waits longest gives way to a new one.
"""
MAX_CONNECTIONS = 4096
"""The most connections of one server, if the process may open that many files."""
_LEAST_CONNECTIONS = 64
_SERVERS = 2
"""Servers in one process: the control plane, and perhaps the embedded gateway."""
_RESERVED_FILES = 768
"""Files for everything else, among them some 128 connections that asyncio accepts before they are counted."""
_LEAST_FILES = 512
"""Without these, a server does not start. They are for its least connections, those that are not counted yet,
and everything else."""
_FILES_OF_A_FUNCTION = 5
"""A connection for calls, one for probes, the two pipes of its process, and its pidfd."""
_BACKLOG = 128
"""Connections that wait to be accepted."""


@asynccontextmanager
async def serving(app: web.Application, host: str, port: int) -> AsyncIterator[URL]:
    """Serve the application until the context ends; yields its address.

    Port 0 picks a free port. Raises `ConfigError` if the address cannot be used.
    """
    # A client that disconnects cancels its request.
    runner = web.AppRunner(app, shutdown_timeout=SHUTDOWN_SECONDS, handler_cancellation=True)
    await runner.setup()
    try:
        assert runner.server is not None
        connections = _Connections(runner.server, _max_connections())
        # Not by aiohttp's TCPSite, which always makes connections of aiohttp's own class.
        create = asyncio.get_running_loop().create_server(connections.open, host, port, backlog=_BACKLOG)
        try:
            listener = await create
        except OSError as error:
            raise ConfigError(f"cannot listen on {host}:{port}: {_os_problem(error)}") from error
        try:
            yield URL.build(scheme="http", host=host, port=listener.sockets[0].getsockname()[1])
        finally:
            listener.close()
    finally:
        await runner.cleanup()


def connection_problem(error: Exception) -> str:
    """Why a request got no answer, in a few words, without the internals in aiohttp's own messages."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return _os_problem(error.os_error)
    return str(error) or type(error).__name__


class _Connections:
    """The open connections of a server.

    When there are too many, the one that has waited longest for its next request is closed. So nobody can
    lock out others by holding connections open.
    """

    def __init__(self, server: web.Server, max_connections: int) -> None:
        self._server = server
        self._application = server.request_handler
        # Connections read this attribute when they are made.
        server.request_handler = self._handle
        self._max_connections = max_connections
        self._waiting: dict[web.RequestHandler, asyncio.BaseTransport] = {}
        """Connections without a request in progress, in the order in which they began to wait."""
        self._busy: dict[web.RequestHandler, asyncio.BaseTransport] = {}

    def open(self) -> "_Connection":
        """A new connection, not connected yet."""
        return _Connection(self, self._server)

    def opened(self, connection: web.RequestHandler, transport: asyncio.BaseTransport) -> None:
        self._waiting[connection] = transport
        if len(self._waiting) + len(self._busy) > self._max_connections:
            oldest = self._waiting.pop(next(iter(self._waiting)))  # It may be the new one.
            # Not close(), which would first wait for the peer to read all data.
            assert isinstance(oldest, asyncio.Transport)
            oldest.abort()

    def closed(self, connection: web.RequestHandler) -> None:
        self._waiting.pop(connection, None)
        self._busy.pop(connection, None)

    def answered(self, connection: web.RequestHandler) -> None:
        """A request of the connection has its response: the connection waits for the next one."""
        if transport := self._busy.pop(connection, None):
            self._waiting[connection] = transport

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if transport := self._waiting.pop(request.protocol, None):
            self._busy[request.protocol] = transport
        # aiohttp would repeat the header in its answer, and fail if it is not UTF-8.
        if request.headers.get("Expect", "100-continue").lower() != "100-continue":
            return _refusal(417, "Expect: only 100-continue is supported")
        return await self._application(request)


class _Connection(web.RequestHandler):
    """One connection. It neither returns nor logs the text of malformed requests, which may contain a key."""

    __slots__ = ("_connections",)

    def __init__(self, connections: _Connections, server: web.Server) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(server, loop=loop, keepalive_timeout=KEEP_ALIVE_SECONDS, access_log=None)  # type: ignore[arg-type]
        self._connections = connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connections.opened(self, transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._connections.closed(self)
        super().connection_lost(exc)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Called with each response: the one place that sees aiohttp's own, too."""
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self._connections.answered(self)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Called for malformed HTTP, and for exceptions that the application did not handle."""
        if status < 500:
            logger.debug("malformed HTTP from %s: %s", request.remote, type(exc).__name__)
        else:
            logger.error("a request failed", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("the response has begun already")
        return _refusal(status, "malformed HTTP" if status < 500 else "internal error")

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Called for errors outside a request's handling."""
        # aiohttp logs a malformed body in full if the response did not depend on it.
        if isinstance(error := kw.get("exc_info"), web.RequestPayloadError):
            logger.debug("a malformed body: %s", type(error.__cause__).__name__)
        else:
            super().log_exception(*args, **kw)


def error_type(status: int) -> str:
    """OpenAI's general type for the errors of a status."""
    return "invalid_request_error" if status < 500 else "server_error"


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The JSON object of an error in OpenAI's API; `param` is the field at fault."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _refusal(status: int, message: str) -> web.Response:
    """An error in the format of OpenAI's API, after which the connection is closed."""
    response = web.json_response(error_body(message, error_type(status)), status=status)
    response.force_close()
    return response


def check_open_files(functions: int) -> None:
    """Raise the limit of open files to what so many functions need; `ConfigError` if it stays lower."""
    try:
        need_open_files(_LEAST_FILES + functions * _FILES_OF_A_FUNCTION)
    except ValueError as error:
        raise ConfigError(f"the server {error}") from error


def _max_connections() -> int:
    """The most connections of a server. Raises the process's limit of open files as far as it may."""
    files = raise_open_files(_SERVERS * MAX_CONNECTIONS + _RESERVED_FILES)
    return max(_LEAST_CONNECTIONS, min(MAX_CONNECTIONS, (files - _RESERVED_FILES) // _SERVERS))


def _os_problem(error: OSError) -> str:
    """The system's own error message, without the text that libraries add."""
    # Negative numbers are the name resolver's; os.strerror does not know them.
    return os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
