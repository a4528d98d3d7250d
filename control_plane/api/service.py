"""Starts requests for text, and ends them: admission before, the books after."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar
from weakref import WeakValueDictionary

from control_plane.api.active_request import CLIENT_GONE, Caller, Generation
from control_plane.api.choice import Choice
from control_plane.api.openai.errors import KINDS
from control_plane.api.openai.requests import GenerationRequest, Prompt
from control_plane.api.text.codec import TextCodec
from control_plane.engine.engine import Engine
from control_plane.engine.sequence import Sequence
from control_plane.errors import (
    BadRequest,
    ContextLengthExceeded,
    FaaSMoEError,
    RequestTimeout,
    RetryLater,
    TenancyError,
)
from control_plane.observability.logs import log_request
from control_plane.observability.metrics import Metrics
from control_plane.tenancy.limits.admission import Ticket
from control_plane.tenancy.limits.limiter import Limiter
from control_plane.tenancy.storage.ledger import Ledger
from control_plane.tenancy.usage import Booking

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

OPEN_ANSWER_TOKENS = 512
"""Counted against a tenant's tokens per minute for an answer that names no limit, until its end is known."""
CANCEL_SECONDS = 10.0
"""How long a step may hold up the end of a request that was cancelled in it."""


@dataclass(frozen=True)
class Generations:
    """Starts and ends requests."""

    engine: Engine
    codec: TextCodec
    limiter: Limiter
    ledger: Ledger
    metrics: Metrics
    request_timeout: float
    """Seconds."""
    log_prompts: bool
    admitted: Callable[[], None]
    """Told of each request that is let in, before its first step."""
    _locks: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)

    @asynccontextmanager
    async def start(self, request: GenerationRequest, caller: Caller) -> AsyncIterator[Generation]:
        """Admit the request; at the context's end nothing of it is left, and it is booked.

        Raises `BadRequest`, `ContextLengthExceeded`, `OutOfCache` or a `RetryLater`, and `RequestTimeout`
        when it takes too long.
        """
        prompts = [await self.encode(prompt, caller.tenant.name) for prompt in request.prompts]
        sequences = [
            self._sequence(token_ids, request, caller, choice)
            for token_ids in prompts
            for choice in range(request.n)
        ]
        generation = await self._admit(request, caller, sequences)
        self.admitted()
        try:
            async with asyncio.timeout(self.request_timeout):
                yield generation
        except TimeoutError as error:
            generation.status = KINDS[RequestTimeout].status
            raise RequestTimeout(f"the request took more than {self.request_timeout:g} s") from error
        except FaaSMoEError as error:
            generation.status = KINDS[type(error)].status
            raise
        finally:
            self.engine.cancel(sequences)
            try:
                await self._ended(generation)
            finally:
                await self._settle(generation)

    async def encode(self, prompt: Prompt, tenant: str, add_special_tokens: bool = True) -> list[int]:
        """The prompt's tokens. Raises `BadRequest`, or `ContextLengthExceeded` for a text that cannot fit."""
        least = self.codec.least_tokens(prompt)
        if least > self.engine.max_length:
            raise ContextLengthExceeded(
                f"the prompt has at least {least} tokens, and there is room for {self.engine.max_length}"
            )
        return await self._aside(tenant, lambda: self.codec.encode(prompt, add_special_tokens))

    async def decode(self, token_ids: list[int], tenant: str) -> str:
        """The tokens' text. Raises `BadRequest`."""
        return await self._aside(tenant, lambda: self.codec.decode(token_ids))

    async def _aside(self, tenant: str, work: Callable[[], Result]) -> Result:
        """Do what may take seconds beside the event loop: for each tenant one thing at a time.

        A client that goes away does not make room for the next one's before its own is done.
        """
        lock = self._locks.setdefault(tenant, asyncio.Lock())

        async def locked() -> Result:
            async with lock:
                return await asyncio.to_thread(work)

        return await asyncio.shield(asyncio.create_task(locked()))

    def _sequence(
        self, token_ids: list[int], request: GenerationRequest, caller: Caller, choice: int
    ) -> Sequence:
        """Raises `BadRequest`, `ContextLengthExceeded` or `OutOfCache` when it is longer than it may be."""
        limits = caller.tenant.limits
        most = min(limits.max_context or self.engine.max_length, self.engine.max_length)
        room = max(most - len(token_ids), 1)
        if request.max_tokens is None:
            max_tokens = min(room, limits.max_output or room)
        else:
            max_tokens = request.max_tokens
        if limits.max_output is not None and max_tokens > limits.max_output:
            raise BadRequest(f"max_tokens: at most {limits.max_output} for this tenant", "max_tokens")
        params = request.sampling_params(max_tokens, choice)
        sequence = Sequence(
            caller.request_id, caller.tenant.name, list(token_ids), params, weight=limits.weight
        )
        if limits.max_context is not None and sequence.max_length > limits.max_context:
            raise ContextLengthExceeded(
                f"this tenant's context is {limits.max_context} tokens: {len(token_ids)} of the prompt and "
                f"{max_tokens} to generate are {sequence.max_length}"
            )
        self.engine.check(sequence)
        return sequence

    async def _admit(
        self, request: GenerationRequest, caller: Caller, sequences: list[Sequence]
    ) -> Generation:
        """Raises a `RetryLater`."""
        prompt_tokens = sum(sequence.num_prompt_tokens for sequence in sequences[:: request.n])
        answer_tokens = sum(
            sequence.params.max_tokens
            if request.max_tokens is not None
            else min(sequence.params.max_tokens, OPEN_ANSWER_TOKENS)
            for sequence in sequences
        )
        choices = [Choice(self.codec, request, sequence, index) for index, sequence in enumerate(sequences)]
        now = time.monotonic()
        try:
            ticket = await self.limiter.admit(caller.tenant, len(sequences), prompt_tokens + answer_tokens)
        except RetryLater as error:
            self.metrics.refused(caller.tenant.name, str(KINDS[type(error)].code))
            raise
        return Generation(request, caller, sequences, choices, ticket, self.engine, now)

    async def _ended(self, generation: Generation) -> None:
        """Wait for the step in which sequences are cancelled: it costs something, too."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CANCEL_SECONDS):
                if generation.stream:
                    await generation.stream.ended()

    async def _settle(self, generation: Generation) -> None:
        """Give back what the request held, and tell what it was."""
        record = generation.record()
        booking = Booking(
            tenant=record.tenant,
            at=time.time(),
            requests=1,
            prompt_tokens=record.prompt_tokens,
            generated_tokens=record.generated_tokens,
            expert_invocations=record.expert_invocations,
            expert_seconds=record.expert_seconds,
        )
        # All that does not wait comes first: a client that goes away now ends this at the booking.
        self.metrics.request_finished(record)
        if record.status == CLIENT_GONE:
            self.metrics.failed(record.status)
        log_request(record, self._prompt_text(generation) if self.log_prompts else None)
        # Also when the client has gone: what was served is booked.
        await asyncio.shield(self._written(generation.ticket, booking))

    async def _written(self, ticket: Ticket, booking: Booking) -> None:
        """The tenant has its answer; that something is not in the books is the operator's to know."""
        # Both are begun at once: a ledger that is closed writes what it was given before.
        booked, released = await asyncio.gather(
            self.ledger.book(booking),
            self.limiter.release(ticket, booking.prompt_tokens + booking.generated_tokens),
            return_exceptions=True,
        )
        if isinstance(booked, TenancyError):
            logger.error("not booked: %s: %s", booking, booked)
        if isinstance(released, TenancyError):
            logger.error("not released before it expires: %s", released)

    def _prompt_text(self, generation: Generation) -> str:
        return "\n".join(
            self.codec.decode(sequence.token_ids[: sequence.num_prompt_tokens])
            for sequence in generation.sequences[:: generation.request.n]
        )
