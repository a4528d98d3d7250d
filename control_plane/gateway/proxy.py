"""Forwards calls to functions, and streams their answers back."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from control_plane.errors import FunctionUnavailable, GatewayError, InvocationTimeout
from control_plane.gateway.middleware import invocation_error
from control_plane.gateway.provider.emulation import EmulatedBehaviour
from control_plane.gateway.provider.process import FunctionProcess
from control_plane.gateway.provider.provider import LocalProvider

# RFC 9110, section 7.6.1. The client sets Host for the function, and the gateway's server answers Expect.
_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "expect",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_ADDED_BY_CLIENT: Final = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
_DEATH_NOTICE_S: Final = 1.0


class _CallTooLarge(Exception):
    """A chunked body is larger than the gateway accepts."""


class FunctionProxy:
    """Forwards calls to the functions of one provider."""

    def __init__(self, provider: LocalProvider, session: aiohttp.ClientSession) -> None:
        self._provider = provider
        self._session = session

    @staticmethod
    def client_session(behaviour: EmulatedBehaviour) -> aiohttp.ClientSession:
        """A client that adds no headers or cookies to the calls that it forwards."""
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=behaviour.keep_alive_seconds),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=_ADDED_BY_CLIENT,
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(),  # each call has its own deadline
        )

    async def call(self, request: web.Request, name: str) -> web.StreamResponse:
        """Answer a call; wait for the function to start if necessary.

        Raises FunctionNotFound, FunctionUnavailable, InvocationTimeout, and GatewayError if the function
        dies during the call.
        """
        if (request.content_length or 0) > request.client_max_size:
            return _too_large(request)
        if not self._provider.behaviour.waits_for_start:
            return await self._call_at_once(request, name)
        async with self._provider.lease(name) as process:
            try:
                return await self._forward(request, name, process)
            except FunctionUnavailable:
                # The process died before the call reached it, so the next process can have the call.
                await process.wait_ended(_DEATH_NOTICE_S)
        async with self._provider.lease(name) as process:
            return await self._forward(request, name, process)

    async def _call_at_once(self, request: web.Request, name: str) -> web.StreamResponse:
        """Answer 500 if the function is not ready, and begin to start it for later calls."""
        try:
            self._provider.peek(name)
            async with self._provider.lease(name) as process:
                return await self._forward(request, name, process)
        except FunctionUnavailable as error:
            with suppress(FunctionUnavailable):
                self._provider.wake(name)
            return invocation_error(500, "function_starting", str(error))

    async def probe(self, request: web.Request, name: str) -> web.StreamResponse:
        """Forward a request that is no invocation. Raises FunctionUnavailable if there is no process."""
        return await self._forward(request, name, self._provider.peek(name))

    async def _forward(self, request: web.Request, name: str, process: FunctionProcess) -> web.StreamResponse:
        deadline = self._provider.timeouts.call
        try:
            # Also ends a call whose caller neither sends the rest of its body nor takes the answer.
            async with (
                asyncio.timeout(deadline),
                self._session.request(
                    request.method,
                    URL(process.url + _path_within(request), encoded=True),
                    headers=_forwarded_headers(request, self._provider.behaviour),
                    data=_limited_body(request) if request.can_read_body else None,
                    allow_redirects=False,
                ) as answer,
            ):
                return await _relay(answer, request)
        except TimeoutError:
            raise InvocationTimeout(f"function {name} did not answer within {deadline:g} s") from None
        except aiohttp.ClientConnectorError as error:
            raise FunctionUnavailable(f"function {name} takes no connection: {error}") from error
        except aiohttp.ClientError as error:
            if isinstance(error.__cause__, _CallTooLarge):
                return _too_large(request)
            await process.wait_ended(_DEATH_NOTICE_S)
            reason = str(error) if process.alive else process.last_words
            raise GatewayError(f"function {name} broke off the call: {reason}") from error


async def _relay(answer: aiohttp.ClientResponse, request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(
        status=answer.status, reason=answer.reason, headers=_end_to_end(answer.headers)
    )
    await response.prepare(request)
    try:
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
    except (aiohttp.ClientError, OSError, asyncio.CancelledError) as error:
        # The status has been sent: only a broken connection can show now that the rest is missing.
        if request.transport is not None:
            request.transport.abort()
        if isinstance(error, asyncio.CancelledError):
            raise
    return response


async def _limited_body(request: web.Request) -> AsyncIterator[bytes]:
    size = 0
    async for chunk in request.content.iter_any():
        size += len(chunk)
        if size > request.client_max_size:
            raise _CallTooLarge
        yield chunk


def _too_large(request: web.Request) -> web.Response:
    return invocation_error(413, "too_large", f"a body may have {request.client_max_size} bytes at most")


def _path_within(request: web.Request) -> str:
    """The path after /function/NAME, and the query, in the caller's spelling."""
    rest = request.rel_url.raw_path_qs.removeprefix(f"/function/{request.match_info['name']}")
    return rest if rest.startswith("/") else "/" + rest


def _forwarded_headers(request: web.Request, behaviour: EmulatedBehaviour) -> CIMultiDict[str]:
    headers = _end_to_end(request.headers)
    if not behaviour.passes_length:
        headers.popall("Content-Length", None)
    headers.setdefault("X-Forwarded-Host", request.host)
    headers.setdefault("X-Forwarded-For", request.remote or "")
    return headers


def _end_to_end(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """All headers except those that concern a single connection."""
    named = {name.strip().lower() for name in headers.get("Connection", "").split(",")}
    return CIMultiDict(
        (name, value) for name, value in headers.items() if name.lower() not in _HOP_BY_HOP | named
    )
