"""The embedded gateway as a web application: OpenFaaS' REST API over one provider."""

import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from control_plane.errors import FunctionNotFound
from control_plane.faas.gateway_access import Credentials
from control_plane.gateway.metrics import GatewayMetrics
from control_plane.gateway.middleware import answer_errors, require_basic_auth
from control_plane.gateway.origin import refuse_pages
from control_plane.gateway.provider.provider import LocalProvider
from control_plane.gateway.proxy import FunctionProxy
from control_plane.gateway.system_api import NAME_IN_PATH, SystemApi, local_name

MAX_BODY_BYTES: Final = 512 * 2**20

_PROVIDER: Final = web.AppKey("provider", LocalProvider)
_PROXY: Final = web.AppKey("proxy", FunctionProxy)
_METRICS: Final = web.AppKey("metrics", GatewayMetrics)

_METRICS_PATH: Final = "metrics"
_CONTROL_PREFIX: Final = "_/"
"""The paths of a function's own API (health, readiness, residency) start with this."""


def create_app(
    provider: LocalProvider,
    credentials: Credentials | None,
    max_body_bytes: int = MAX_BODY_BYTES,
    host: str = "127.0.0.1",
) -> web.Application:
    """The gateway's application, to be served at `host`. Its cleanup ends the provider's functions.

    Without credentials, any program may deploy. Calls of more than `max_body_bytes` are answered with 413.
    """
    authentication = [require_basic_auth(credentials)] if credentials else []
    app = web.Application(
        client_max_size=max_body_bytes,
        middlewares=[refuse_pages(host), *authentication, _answer_without_provider, answer_errors],
        # Functions get bodies unchanged, compressed ones too.
        handler_args={"auto_decompress": False},
    )
    app[_PROVIDER] = provider
    app[_METRICS] = GatewayMetrics()
    app.cleanup_ctx.append(_run)
    app.on_shutdown.append(_end_log_streams)
    app.add_routes(SystemApi(provider).routes())
    app.add_routes(
        [
            web.get("/healthz", _healthz),
            web.get("/metrics", _metrics),
            web.route("*", f"/function/{NAME_IN_PATH}", _invoke),
            web.route("*", f"/function/{NAME_IN_PATH}/{{path:.*}}", _invoke),
        ]
    )
    return app


async def _run(app: web.Application) -> AsyncIterator[None]:
    async with app[_PROVIDER] as provider, FunctionProxy.client_session(provider.behaviour) as session:
        app[_PROXY] = FunctionProxy(provider, session)
        yield


@web.middleware
async def _answer_without_provider(request: web.Request, handler: Handler) -> web.StreamResponse:
    if request.app[_PROVIDER].away:
        return web.Response(status=404, text="not found\n")
    return await handler(request)


async def _end_log_streams(app: web.Application) -> None:
    app[_PROVIDER].end_log_streams()


async def _healthz(_: web.Request) -> web.Response:
    return web.Response(text="OK")


async def _metrics(request: web.Request) -> web.Response:
    text = request.app[_METRICS].render(request.app[_PROVIDER].replicas())
    return web.Response(text=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


async def _invoke(request: web.Request) -> web.StreamResponse:
    name, proxy = local_name(request), request.app[_PROXY]
    path = request.match_info.get("path", "")
    # Health checks and residency limits must neither wake a function nor keep it awake.
    if path == _METRICS_PATH or path.startswith(_CONTROL_PREFIX):
        return await proxy.probe(request, name)
    # Only functions that exist are counted: callers can make up any number of names.
    if name not in request.app[_PROVIDER]:
        raise FunctionNotFound(f"function {name} not found")
    metrics = request.app[_METRICS]
    metrics.start(name)
    began = time.perf_counter()
    # Errors become answers here, so that the metrics count them by status.
    response = await answer_errors(request, partial(proxy.call, name=name))
    metrics.complete(name, response.status, time.perf_counter() - began)
    return response
