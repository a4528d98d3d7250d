"""The control plane's HTTP API."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from control_plane.api import openai, sse
from control_plane.api.errors import describe, json_errors
from control_plane.api.status import StatusReporter
from control_plane.api.text import TextCodec
from control_plane.engine.engine import Engine, TokenStream
from control_plane.engine.sequence import FinishReason, Sequence
from control_plane.errors import BadRequest, FaaSMoEError

MAX_BODY_BYTES = 4 << 20
DEFAULT_CHAT_TOKENS = 512
"""For a chat that names no limit; the KV cache keeps room for all of them."""


@dataclass(frozen=True)
class Piece:
    """A part of an answer's text; the last one says why the answer ends."""

    text: str
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class Api:
    """The routes, and what they need."""

    model: str
    engine: Engine
    codec: TextCodec
    status: StatusReporter

    def app(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(middlewares=[json_errors], client_max_size=MAX_BODY_BYTES)
        app.add_routes(
            [
                web.post("/v1/chat/completions", self.chat_completions),
                web.post("/v1/completions", self.completions),
                web.get("/v1/models", self.models),
                web.get("/v1/models/{model}", self.model_card),
                web.get("/health", self.health),
                web.get("/ready", self.health),
                web.get("/status", self.show_status),
            ]
        )
        return app

    async def chat_completions(self, request: web.Request) -> web.StreamResponse:
        """Answer a chat."""
        return await self._generate(request, openai.parse_chat(await _read_json(request), self.model))

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """Continue a text."""
        return await self._generate(request, openai.parse_completion(await _read_json(request), self.model))

    async def models(self, request: web.Request) -> web.Response:
        """The one model."""
        return web.json_response({"object": "list", "data": [self._model_card()]})

    async def model_card(self, request: web.Request) -> web.Response:
        """The model, by its name."""
        if request.match_info["model"] != self.model:
            raise web.HTTPNotFound(reason=f"there is no model {request.match_info['model']!r}")
        return web.json_response(self._model_card())

    async def health(self, request: web.Request) -> web.Response:
        """Whether prompts are answered."""
        if not self.engine.alive:
            raise web.HTTPServiceUnavailable(reason="the engine has stopped")
        return web.Response(text="OK")

    async def show_status(self, request: web.Request) -> web.Response:
        """The functions and the engine, for people and `faasmoe status`."""
        return web.json_response(await self.status.report())

    async def _generate(self, request: web.Request, asked: openai.GenerationRequest) -> web.StreamResponse:
        stream = self.engine.submit(await self._sequence(asked))
        answer = openai.CompletionFormat(stream.sequence.request_id, self.model, asked.is_chat)
        try:
            if asked.stream:
                return await self._stream(request, stream, answer, asked.include_usage)
            pieces = [piece async for piece in self._pieces(stream)]
            text = "".join(piece.text for piece in pieces)
            return web.json_response(answer.whole(text, pieces[-1].finish_reason, _usage(stream.sequence)))
        finally:
            self.engine.cancel(stream.sequence)

    async def _stream(
        self, request: web.Request, stream: TokenStream, answer: openai.CompletionFormat, include_usage: bool
    ) -> web.StreamResponse:
        response = await sse.open_stream(request)
        with suppress(ConnectionResetError):  # the client has gone, and its sequence with it
            try:
                async for piece in self._pieces(stream):
                    await response.write(sse.event(answer.chunk(piece.text, piece.finish_reason)))
                if include_usage:
                    await response.write(sse.event(answer.usage_chunk(_usage(stream.sequence))))
            except FaaSMoEError as error:
                await response.write(sse.event(describe(error)))
            await response.write(sse.DONE)
        return response

    async def _pieces(self, stream: TokenStream) -> AsyncIterator[Piece]:
        decoder = self.codec.decoder()
        async for token in stream:
            # One for each token, also where its text is held back: clients time them.
            yield Piece(decoder.add(token))
        yield Piece(decoder.finish(), stream.sequence.finish_reason)

    async def _sequence(self, asked: openai.GenerationRequest) -> Sequence:
        # A long prompt takes seconds, in which other answers have to go on.
        token_ids = await asyncio.to_thread(self.codec.encode, asked)
        room = max(self.engine.max_length - len(token_ids), 1)
        max_tokens = min(room, DEFAULT_CHAT_TOKENS) if asked.max_tokens is None else asked.max_tokens
        return Sequence(
            f"cmpl-{secrets.token_hex(12)}", asked.tenant, token_ids, asked.sampling_params(max_tokens)
        )

    def _model_card(self) -> dict[str, Any]:
        return {
            "id": self.model,
            "object": "model",
            "created": 0,
            "owned_by": "faasmoe",
            "max_model_len": self.engine.max_length,
        }


async def _read_json(request: web.Request) -> Any:
    """The body, decoded. Raises `BadRequest`."""
    try:
        return json.loads(await request.read())
    # Not only JSONDecodeError: text may be no UTF-8, numbers too long, and lists too deep.
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from error


def _usage(sequence: Sequence) -> dict[str, Any]:
    """OpenAI's usage, and beside it what the request's experts have cost."""
    output_tokens = len(sequence.output_ids)
    return {
        "prompt_tokens": sequence.num_prompt_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": sequence.num_prompt_tokens + output_tokens,
        "experts": {
            "invocations": sequence.usage.invocations,
            "cold_starts": sequence.usage.cold_starts,
            "cold_experts": sequence.usage.cold_experts,
            "wire_bytes": sequence.usage.wire_bytes,
            "seconds": round(sequence.usage.seconds, 6),
        },
    }
