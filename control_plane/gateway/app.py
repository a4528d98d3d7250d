"""The embedded gateway: OpenFaaS' REST API over the function processes of this machine."""

import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Final

from aiohttp import web

from control_plane.errors import FunctionNotFound
from control_plane.gateway.basic_auth import require_basic_auth
from control_plane.gateway.errors import answer_errors
from control_plane.gateway.metrics import GatewayMetrics
from control_plane.gateway.provider.provider import LocalProvider
from control_plane.gateway.proxy import FunctionProxy
from control_plane.gateway.system_api import NAME_IN_PATH, SystemApi, local_name
from control_plane.gateway_access import Credentials

MAX_BODY_BYTES: Final = 512 * 2**20

_PROVIDER: Final = web.AppKey("provider", LocalProvider)
_PROXY: Final = web.AppKey("proxy", FunctionProxy)
_METRICS: Final = web.AppKey("metrics", GatewayMetrics)

_METRICS_PATH: Final = "metrics"
_BESIDE_INVOCATIONS: Final = "_/"
"""What functions tell about themselves, and how much they may hold, is below this."""


def create_app(
    provider: LocalProvider, credentials: Credentials | None, max_body_bytes: int = MAX_BODY_BYTES
) -> web.Application:
    """The gateway as an application, which ends the provider's functions when it is cleaned up.

    Without credentials everybody may deploy. A larger body than `max_body_bytes` is answered with 413.
    """
    authentication = [require_basic_auth(credentials)] if credentials else []
    app = web.Application(
        client_max_size=max_body_bytes,
        middlewares=[*authentication, answer_errors],
        # Bodies are the functions' business: they pass as they are.
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
    # Asking how a function is, or telling it what it may hold, must neither wake it nor keep it awake.
    if path == _METRICS_PATH or path.startswith(_BESIDE_INVOCATIONS):
        return await proxy.probe(request, name)
    # Only functions that exist are counted: the names that callers can make up have no end.
    if name not in request.app[_PROVIDER]:
        raise FunctionNotFound(f"function {name} not found")
    metrics = request.app[_METRICS]
    metrics.start(name)
    began = time.perf_counter()
    # Errors become answers here, so that they are counted by their status.
    response = await answer_errors(request, partial(proxy.call, name=name))
    metrics.complete(name, response.status, time.perf_counter() - began)
    return response
