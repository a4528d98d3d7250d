"""The routes of the control plane's HTTP API."""

import asyncio
import json
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from control_plane.api.active_request import Caller
from control_plane.api.authentication import Authentication
from control_plane.api.drain import Drain
from control_plane.api.middleware import REQUEST_ID, TENANT, TIMING, log_error, request_middleware
from control_plane.api.openai import requests
from control_plane.api.openai.answers import CompletionFormat, detokenize_body, tokenize_body
from control_plane.api.openai.errors import KINDS
from control_plane.api.openai.headers import rate_limit_headers
from control_plane.api.openai.wire import decode_json
from control_plane.api.sending import event_stream, send_part, send_whole
from control_plane.api.service import CompletionService
from control_plane.api.text.answer_format import AnswerFormat, AnswerHead
from control_plane.api.text.choice import Piece
from control_plane.api.text.request import GenerationRequest
from control_plane.errors import FaaSMoEError, ShuttingDown, TenancyError, UnknownModel
from control_plane.observability.metrics import CONTENT_TYPE, Metrics
from control_plane.observability.status import StatusReporter, without_addresses

MAX_BODY_BYTES = 4 << 20
LARGE_BODY_BYTES = 64 << 10
"""A larger body is decoded in a thread, so that it does not block the event loop."""
BODY_SECONDS = 30.0
"""The longest that a request's body may take to arrive."""

Parser = Callable[[Any, str], GenerationRequest]
"""Reads a decoded body for the served model of that name."""
Formatter = Callable[[GenerationRequest, AnswerHead], AnswerFormat]


@dataclass(frozen=True)
class Api:
    """The routes and the services behind them."""

    model: str
    fingerprint: str
    """The partition's fingerprint. Answers with the same one come from the same weights."""
    started: int
    """Start of the server, in seconds since 1970."""
    authentication: Authentication
    service: CompletionService
    drain: Drain
    status: StatusReporter
    metrics: Metrics

    def app(self) -> web.Application:
        """Build the aiohttp application."""
        app = web.Application(middlewares=[request_middleware], client_max_size=MAX_BODY_BYTES)
        app.on_response_prepare.append(self._prepare)
        app.add_routes(
            [
                web.post("/v1/chat/completions", self.chat_completions),
                web.post("/v1/completions", self.completions),
                web.get("/v1/models", self.models),
                web.get("/v1/models/{model}", self.model_card),
                web.post("/tokenize", self.tokenize),
                web.post("/detokenize", self.detokenize),
                web.get("/health", self.health),
                web.get("/ready", self.ready),
                web.get("/metrics", self.show_metrics),
                web.get("/status", self.show_status),
            ]
        )
        return app

    @property
    def system_fingerprint(self) -> str:
        """What answers call the weights."""
        return f"fp_{self.fingerprint[:12]}"

    async def chat_completions(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions: answer a chat."""
        return await self._generate(request, requests.parse_chat, CompletionFormat)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/completions: continue a text."""
        return await self._generate(request, requests.parse_completion, CompletionFormat)

    async def models(self, request: web.Request) -> web.Response:
        """GET /v1/models: list the served model."""
        await self._authenticate(request)
        return web.json_response({"object": "list", "data": [self._model_card()]})

    async def model_card(self, request: web.Request) -> web.Response:
        """GET /v1/models/{model}: describe the model."""
        await self._authenticate(request)
        if request.match_info["model"] != self.model:
            raise UnknownModel(request.match_info["model"], self.model)
        return web.json_response(self._model_card())

    async def tokenize(self, request: web.Request) -> web.Response:
        """POST /tokenize: the tokens of a prompt, as in vLLM."""
        name = await self._authenticate(request)
        with self.drain.request(name):
            asked = requests.parse_tokenize(await _read_json(request), self.model)
            token_ids = await self.service.encode(asked.prompt, name, asked.add_special_tokens)
        return web.json_response(tokenize_body(token_ids, self.service.engine.max_length))

    async def detokenize(self, request: web.Request) -> web.Response:
        """POST /detokenize: the text of tokens, as in vLLM."""
        name = await self._authenticate(request)
        with self.drain.request(name):
            token_ids = requests.parse_detokenize(await _read_json(request), self.model)
            text = await self.service.decode(token_ids, name)
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
        """GET /status: the functions and the engine, for people and `faasmoe status`.

        Where keys are required, only operators see the gateways' addresses.
        """
        report = await self.status.report()
        if not (self.authentication.open or await self.authentication.is_operator(request)):
            report = without_addresses(report)
        return web.json_response(report)

    async def _authenticate(self, request: web.Request) -> str:
        """Note the tenant of the key; returns its name, or "" without a key. Raises `InvalidApiKey`."""
        tenant = await self.authentication.tenant(request)
        if tenant is None:
            return ""
        request[TENANT] = tenant
        return tenant.name

    async def _generate(
        self, request: web.Request, parse: Parser, formatter: Formatter
    ) -> web.StreamResponse:
        name = await self._authenticate(request)
        with self.drain.request(name):
            asked = parse(await _read_json(request), self.model)
            if TENANT not in request:
                request[TENANT] = await self.authentication.named(asked.user)
            tenant = request[TENANT]
            caller = Caller(tenant, request[REQUEST_ID], request.path, request[TIMING])
            head = AnswerHead(secrets.token_hex(12), self.model, int(time.time()), self.system_fingerprint)
            answer = formatter(asked, head)
            if asked.stream:
                return await self._stream(request, caller, answer)
            async with self.service.start(asked, caller) as active:
                pieces: list[list[Piece]] = [[] for _ in active.choices]
                async for index, piece in active.pieces():
                    pieces[index].append(piece)
            # Encoded in a thread: an answer with log-probabilities can have megabytes.
            body = await asyncio.to_thread(lambda: json.dumps(answer.whole(pieces, active.usage)))
            return await send_whole(request, web.Response(text=body, content_type="application/json"))

    async def _stream(self, request: web.Request, caller: Caller, answer: AnswerFormat) -> web.StreamResponse:
        response = event_stream()
        try:
            async with self.service.start(answer.request, caller) as active:
                # Sent with the first piece: until then, an error can still have its own response and status.
                opening = answer.begin(active.usage)
                async for index, piece in active.pieces():
                    chunk = answer.piece(index, piece, active.usage)
                    await send_part(request, response, opening + chunk)
                    opening = b""
        except FaaSMoEError as error:
            if not response.prepared:
                raise
            self.metrics.failed(KINDS[type(error)].status)
            log_error(request, error)
            ending = answer.error(error, caller.request_id)
        else:
            ending = answer.end(active.usage)
        await send_part(request, response, ending)
        return response

    async def _prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """Set the headers that every response has, and count errors."""
        if response.status >= 400:
            self.metrics.failed(response.status)
        # A request that aiohttp could not parse has no id and no tenant.
        response.headers["x-request-id"] = request.get(REQUEST_ID, "")
        if tenant := request.get(TENANT):
            # Without the database, send the answer without its rate-limit headers.
            with suppress(TenancyError):
                quota = await self.service.limiter.quota(tenant)
                response.headers.update(rate_limit_headers(quota))

    def _model_card(self) -> dict[str, Any]:
        return {
            "id": self.model,
            "object": "model",
            "created": self.started,
            "owned_by": "faasmoe",
            "max_model_len": self.service.engine.max_length,
        }


async def _read_json(request: web.Request) -> Any:
    """Decode the body. Raises `BadRequest`."""
    # A page of another site can post text to an open server, but JSON only if the server agrees.
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(reason="the Content-Type must be application/json")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await request.read()
    except TimeoutError as error:
        raise web.HTTPRequestTimeout(reason="the body did not arrive in time") from error
    return await asyncio.to_thread(decode_json, body) if len(body) > LARGE_BODY_BYTES else decode_json(body)
