"""The routes of the control plane's HTTP API."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from control_plane.api.anthropic.answers import MessageFormat
from control_plane.api.anthropic.requests import parse_count, parse_message
from control_plane.api.authentication import Authentication
from control_plane.api.cors import Origins
from control_plane.api.drain import Drain
from control_plane.api.generation import Generation
from control_plane.api.middleware import REQUEST_ID, TENANT, request_middleware, routes
from control_plane.api.models import ServedModels
from control_plane.api.openai import requests
from control_plane.api.openai.answers import CompletionFormat, detokenize_body, tokenize_body
from control_plane.api.openai.headers import rate_limit_headers
from control_plane.api.receiving import MAX_BODY_BYTES, read_json
from control_plane.api.responses.answers import ResponseFormat
from control_plane.api.responses.requests import parse_response
from control_plane.api.service import CompletionService
from control_plane.api.text.request import TokenizeRequest
from control_plane.errors import BadRequest, ShuttingDown, TenancyError
from control_plane.observability.metrics import CONTENT_TYPE, Metrics
from control_plane.observability.status import StatusReporter, without_addresses

_INDEX = """\
FaaSMoE serves a language model to programs. Clients of OpenAI's API need this address and /v1 as base URL.

{routes}

The documentation is in the folder docs of FaaSMoE's repository; serving.md describes the API.
"""


@dataclass(frozen=True)
class Api:
    """The routes and the services behind them."""

    models: ServedModels
    started: int
    """Start of the server, in seconds since 1970."""
    origins: Origins
    authentication: Authentication
    generation: Generation
    service: CompletionService
    drain: Drain
    status: StatusReporter
    metrics: Metrics

    def app(self) -> web.Application:
        """Build the aiohttp application."""
        middlewares = [request_middleware, self.origins.preflight]
        app = web.Application(middlewares=middlewares, client_max_size=MAX_BODY_BYTES)
        app.on_response_prepare.append(self._prepare)
        add_routes(app, self._routes())
        app.add_routes([web.get("/", self.index)])
        return app

    def _routes(self) -> list[web.RouteDef]:
        generate = self.generation.handler
        return [
            web.post("/v1/chat/completions", generate(requests.parse_chat, CompletionFormat)),
            web.post("/v1/completions", generate(requests.parse_completion, CompletionFormat)),
            web.post("/v1/responses", generate(parse_response, ResponseFormat)),
            web.post("/v1/messages", generate(parse_message, MessageFormat)),
            web.post("/v1/messages/count_tokens", self.count_tokens),
            web.post("/v1/embeddings", self.embeddings),
            web.get("/v1/models", self.list_models),
            web.get("/v1/models/{model:.+}", self.show_model),
            web.post("/tokenize", self.tokenize),
            web.post("/detokenize", self.detokenize),
            web.get("/health", self.health),
            web.get("/ready", self.ready),
            web.get("/metrics", self.show_metrics),
            web.get("/status", self.show_status),
        ]

    async def index(self, request: web.Request) -> web.Response:
        """GET /: what this is, and where everything else is, for people."""
        lines = "\n".join(map(" ".join, routes(request.app)))
        return web.Response(text=_INDEX.format(routes=lines))

    async def count_tokens(self, request: web.Request) -> web.Response:
        """POST /v1/messages/count_tokens: the number of a chat's tokens, as in Anthropic's API."""
        name = await self.authentication.identify(request)
        with self.drain.request(name):
            token_ids = await self._tokens(parse_count(await self._body(request)), name)
        return web.json_response({"input_tokens": len(token_ids)})

    async def embeddings(self, request: web.Request) -> web.Response:
        """POST /v1/embeddings: refused."""
        await self.authentication.identify(request)
        raise BadRequest(f"model: {self.models.names[0]!r} generates text, and makes no embeddings", "model")

    async def list_models(self, request: web.Request) -> web.Response:
        """GET /v1/models: list the served model, by each of its names."""
        await self.authentication.identify(request)
        return web.json_response({"object": "list", "data": [*map(self._model_card, self.models.names)]})

    async def show_model(self, request: web.Request) -> web.Response:
        """GET /v1/models/{model}: describe the model."""
        await self.authentication.identify(request)
        return web.json_response(self._model_card(self.models.named(request.match_info["model"])))

    async def tokenize(self, request: web.Request) -> web.Response:
        """POST /tokenize: the tokens of a prompt, as in vLLM."""
        name = await self.authentication.identify(request)
        with self.drain.request(name):
            token_ids = await self._tokens(requests.parse_tokenize(await self._body(request)), name)
        return web.json_response(tokenize_body(token_ids, self.service.engine.max_length))

    async def detokenize(self, request: web.Request) -> web.Response:
        """POST /detokenize: the text of tokens, as in vLLM."""
        name = await self.authentication.identify(request)
        with self.drain.request(name):
            asked = requests.parse_detokenize(await self._body(request))
            self.service.ignored_fields.note(asked.ignored_fields)
            text = await self.service.decode(asked.token_ids, name)
        return web.json_response(detokenize_body(text))

    async def health(self, request: web.Request) -> web.Response:
        """GET /health: whether the engine runs."""
        if not self.service.engine.alive:
            raise web.HTTPServiceUnavailable(reason="the engine has stopped", headers={"Retry-After": "5"})
        return web.Response(text="OK")

    async def ready(self, request: web.Request) -> web.Response:
        """GET /ready: whether new requests are accepted."""
        if self.drain.ending:
            raise ShuttingDown
        await self.authentication.store.run(lambda store: None)
        return await self.health(request)

    async def show_metrics(self, request: web.Request) -> web.Response:
        """GET /metrics, for Prometheus. Metrics by tenant need an operator's key."""
        body = self.metrics.render(with_tenants=await self.authentication.is_operator(request))
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    async def show_status(self, request: web.Request) -> web.Response:
        """GET /status: the functions and the engine, for people and `faasmoe status`."""
        report = await self.status.report()
        if not await self.authentication.may_see_addresses(request):
            report = without_addresses(report)
        return web.json_response(report)

    async def _prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """Set the headers that every response has, and count errors."""
        if response.status >= 400:
            self.metrics.failed(response.status)
        response.headers.update(self.origins.headers(request))
        # A request that aiohttp could not parse has no id and no tenant.
        response.headers["x-request-id"] = request.get(REQUEST_ID, "")
        if tenant := request.get(TENANT):
            # Without the database, send the answer without its rate-limit headers.
            with suppress(TenancyError):
                quota = await self.service.limiter.quota(tenant)
                response.headers.update(rate_limit_headers(quota))

    async def _body(self, request: web.Request) -> Any:
        """Decode the body. Raises `BadRequest`, and `UnknownModel` if it names another model."""
        body = await read_json(request)
        self.models.asked(body)
        return body

    async def _tokens(self, asked: TokenizeRequest, tenant: str) -> list[int]:
        self.service.ignored_fields.note(asked.ignored_fields)
        return await self.service.encode(asked.prompt, tenant, asked.add_special_tokens)

    def _model_card(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self.started,
            "owned_by": "faasmoe",
            "max_model_len": self.service.engine.max_length,
        }


def add_routes(app: web.Application, routes: Iterable[web.RouteDef]) -> None:
    """Add routes to the application, each also with a slash at its end, as some clients write it."""
    for route in routes:
        # With the slash first, for a model's name may have slashes, too.
        app.add_routes([web.route(route.method, f"{route.path}/", route.handler, **route.kwargs), route])
