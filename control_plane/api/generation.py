"""Answers requests for text, whole or as a stream, whatever API they belong to."""

import asyncio
import json
import secrets
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

from aiohttp import web

from control_plane.api.active_request import Caller
from control_plane.api.authentication import Authentication
from control_plane.api.drain import Drain
from control_plane.api.middleware import REQUEST_ID, TENANT, TIMING, Handler, log_error
from control_plane.api.models import ServedModels
from control_plane.api.openai.errors import KINDS
from control_plane.api.receiving import read_json
from control_plane.api.sending import EventStream, send_whole
from control_plane.api.service import CompletionService
from control_plane.api.text.answer_format import AnswerFormat, AnswerHead
from control_plane.api.text.request import GenerationRequest
from control_plane.errors import FaaSMoEError

Asked = TypeVar("Asked", bound=GenerationRequest)
Parser = Callable[[Any], Asked]
"""Reads a decoded body. Raises `BadRequest`."""
Formatter = Callable[[Asked, AnswerHead], AnswerFormat]


@dataclass(frozen=True)
class Generation:
    """Makes the handlers of routes that generate text."""

    models: ServedModels
    fingerprint: str
    """The partition's fingerprint. Answers with the same one come from the same weights."""
    authentication: Authentication
    service: CompletionService
    drain: Drain

    @property
    def system_fingerprint(self) -> str:
        """What answers call the weights."""
        return f"fp_{self.fingerprint[:12]}"

    def handler(self, parse: Parser[Asked], formatter: Formatter[Asked]) -> Handler:
        """A handler for requests that `parse` reads, and whose answers have the form of `formatter`."""

        async def handle(request: web.Request) -> web.StreamResponse:
            name = await self.authentication.identify(request)
            with self.drain.request(name):
                body = await read_json(request)
                model = self.models.asked(body)
                asked = parse(body)
                if TENANT not in request:
                    request[TENANT] = await self.authentication.named(asked.user)
                caller = Caller(request[TENANT], request[REQUEST_ID], request.path, request[TIMING])
                head = AnswerHead(secrets.token_hex(12), model, int(time.time()), self.system_fingerprint)
                answer = formatter(asked, head)
                send = self._stream if asked.stream else self._whole
                return await send(request, caller, answer)

        return handle

    async def _whole(self, request: web.Request, caller: Caller, answer: AnswerFormat) -> web.StreamResponse:
        async with self.service.start(answer.request, caller) as active:
            pieces = await active.whole()
        # Encoded in a thread: an answer with log-probabilities can have megabytes.
        body = await asyncio.to_thread(lambda: json.dumps(answer.whole(pieces, active.usage)))
        return await send_whole(request, web.Response(text=body, content_type="application/json"))

    async def _stream(self, request: web.Request, caller: Caller, answer: AnswerFormat) -> web.StreamResponse:
        stream = EventStream(request)
        async with AsyncExitStack() as until_sent:
            try:
                async with self.service.start(answer.request, caller) as active:
                    await until_sent.enter_async_context(stream.kept_alive())
                    # Sent with the first piece: until then, or until the first heartbeat, an error can still
                    # have its own status, by which clients decide whether to try again.
                    opening = answer.begin(active.usage)
                    async for index, piece in active.pieces():
                        await stream.send(opening + answer.piece(index, piece, active.usage))
                        opening = b""
            except FaaSMoEError as error:
                if not stream.begun:
                    raise
                self.service.metrics.failed(KINDS[type(error)].status)
                log_error(request, error)
                ending = answer.error(error, caller.request_id)
            else:
                ending = answer.end(active.usage)
            await stream.send(ending)
        return stream.response
