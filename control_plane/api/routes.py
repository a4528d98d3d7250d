"""The control plane's HTTP API: which path does what."""

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
from control_plane.api.choice import Piece
from control_plane.api.drain import Drain
from control_plane.api.middleware import REQUEST_ID, TENANT, TIMING, request_middleware
from control_plane.api.openai import requests as generation_request
from control_plane.api.openai import sse
from control_plane.api.openai.answers import AnswerFormat, detokenize_body, tokenize_body
from control_plane.api.openai.errors import KINDS, describe
from control_plane.api.openai.rate_limits import rate_limit_headers
from control_plane.api.openai.requests import GenerationRequest
from control_plane.api.openai.sse import send_part, send_whole
from control_plane.api.service import Generations
from control_plane.errors import BadRequest, FaaSMoEError, ShuttingDown, TenancyError, UnknownModel
from control_plane.observability.metrics import CONTENT_TYPE, Metrics
from control_plane.observability.status import StatusReporter

MAX_BODY_BYTES = 4 << 20
LARGE_BODY_BYTES = 64 << 10
"""To be decoded beside the event loop."""
BODY_SECONDS = 30.0
"""How long a request's body may take to arrive."""

Parser = Callable[[Any, str], GenerationRequest]


@dataclass(frozen=True)
class Api:
    """The routes, and what they need."""

    model: str
    fingerprint: str
    """Of the partition: answers of the same one are comparable."""
    started: int
    """Seconds since 1970: since when the model is served."""
    authentication: Authentication
    generations: Generations
    drain: Drain
    status: StatusReporter
    metrics: Metrics

    def app(self) -> web.Application:
        """The aiohttp application."""
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

    async def chat_completions(self, request: web.Request) -> web.StreamResponse:
        """Answer a chat."""
        return await self._generate(request, generation_request.parse_chat)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """Continue a text."""
        return await self._generate(request, generation_request.parse_completion)

    async def models(self, request: web.Request) -> web.Response:
        """The one model."""
        await self._authenticate(request)
        return web.json_response({"object": "list", "data": [self._model_card()]})

    async def model_card(self, request: web.Request) -> web.Response:
        """The model, by its name."""
        await self._authenticate(request)
        if request.match_info["model"] != self.model:
            raise UnknownModel(request.match_info["model"], self.model)
        return web.json_response(self._model_card())

    async def tokenize(self, request: web.Request) -> web.Response:
        """A prompt's tokens, as vLLM tells them."""
        name = await self._authenticate(request)
        with self.drain.request(name):
            asked = generation_request.parse_tokenize(await _read_json(request), self.model)
            token_ids = await self.generations.encode(asked.prompt, name, asked.add_special_tokens)
        return web.json_response(tokenize_body(token_ids, self.generations.engine.max_length))

    async def detokenize(self, request: web.Request) -> web.Response:
        """The text of tokens, as vLLM tells it."""
        name = await self._authenticate(request)
        with self.drain.request(name):
            token_ids = generation_request.parse_detokenize(await _read_json(request), self.model)
            text = await self.generations.decode(token_ids, name)
        return web.json_response(detokenize_body(text))

    async def health(self, request: web.Request) -> web.Response:
        """Whether the engine lives."""
        if not self.generations.engine.alive:
            raise web.HTTPServiceUnavailable(reason="the engine has stopped")
        return web.Response(text="OK")

    async def ready(self, request: web.Request) -> web.Response:
        """Whether new requests are answered."""
        if self.drain.ending:
            raise ShuttingDown
        return await self.health(request)

    async def show_metrics(self, request: web.Request) -> web.Response:
        """For Prometheus; what concerns single tenants only for an operator's key."""
        body = self.metrics.render(with_tenants=await self.authentication.is_operator(request))
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    async def show_status(self, request: web.Request) -> web.Response:
        """The functions and the engine, for people and `faasmoe status`."""
        return web.json_response(await self.status.report())

    async def _authenticate(self, request: web.Request) -> str:
        """The name of the key's tenant, who is noted; "" where none is needed. Raises `InvalidApiKey`."""
        tenant = await self.authentication.tenant(request)
        if tenant is None:
            return ""
        request[TENANT] = tenant
        return tenant.name

    async def _generate(self, request: web.Request, parse: Parser) -> web.StreamResponse:
        name = await self._authenticate(request)
        with self.drain.request(name):
            asked = parse(await _read_json(request), self.model)
            if TENANT not in request:
                request[TENANT] = await self.authentication.named(asked.user)
            tenant = request[TENANT]
            caller = Caller(tenant, request[REQUEST_ID], request.path, request[TIMING])
            fingerprint = f"fp_{self.fingerprint[:12]}"
            answer = AnswerFormat(asked, secrets.token_hex(12), self.model, int(time.time()), fingerprint)
            if asked.stream:
                return await self._stream(request, caller, answer)
            async with self.generations.start(asked, caller) as generation:
                pieces: list[list[Piece]] = [[] for _ in generation.choices]
                async for index, piece in generation.pieces():
                    pieces[index].append(piece)
            # An answer with log-probabilities can have megabytes; other answers go on meanwhile.
            body = await asyncio.to_thread(lambda: json.dumps(answer.whole(pieces, generation.usage())))
            return await send_whole(request, web.Response(text=body, content_type="application/json"))

    async def _stream(self, request: web.Request, caller: Caller, answer: AnswerFormat) -> web.StreamResponse:
        response = sse.event_stream()
        ending = b""
        try:
            async with self.generations.start(answer.request, caller) as generation:
                streams = [answer.choice_stream(index) for index in range(len(generation.choices))]
                async for index, piece in generation.pieces():
                    event = streams[index].event(piece, generation.continuous_usage())
                    await send_part(request, response, event)
        except FaaSMoEError as error:
            # Before the first piece it is an answer of its own, with its status.
            if not response.prepared:
                raise
            self.metrics.failed(KINDS[type(error)].status)
            ending = sse.event(describe(error))
        else:
            if answer.request.include_usage:
                ending = answer.usage_event(generation.usage())
        await send_part(request, response, ending + sse.DONE)
        return response

    async def _prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """The last word on every answer's headers."""
        if response.status >= 400:
            self.metrics.failed(response.status)
        # A request that aiohttp itself could not read has neither.
        response.headers["x-request-id"] = request.get(REQUEST_ID, "")
        if tenant := request.get(TENANT):
            # Where the database is away, the answer is worth more than its headers.
            with suppress(TenancyError):
                quota = await self.generations.limiter.quota(tenant)
                response.headers.update(rate_limit_headers(quota))

    def _model_card(self) -> dict[str, Any]:
        return {
            "id": self.model,
            "object": "model",
            "created": self.started,
            "owned_by": "faasmoe",
            "max_model_len": self.generations.engine.max_length,
        }


async def _read_json(request: web.Request) -> Any:
    """The body, decoded. Raises `BadRequest`."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await request.read()
        return await asyncio.to_thread(json.loads, body) if len(body) > LARGE_BODY_BYTES else json.loads(body)
    except TimeoutError as error:
        raise web.HTTPRequestTimeout(reason="the body did not arrive in time") from error
    # Not only JSONDecodeError: text may be no UTF-8, numbers too long, and lists too deep.
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
