"""One request for text, from its admission to its entry in the books."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from control_plane.api.answers import usage_body
from control_plane.api.choice import Choice, Piece
from control_plane.api.errors import KINDS
from control_plane.api.generation_request import GenerationRequest, Prompt
from control_plane.api.text import TextCodec
from control_plane.api.timing import Timing
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
from control_plane.faas.invocation import ExpertUsage
from control_plane.logs import log_request
from control_plane.metrics import Metrics, RequestRecord
from control_plane.tenancy.admission import Admission, Ticket
from control_plane.tenancy.ledger import Ledger
from control_plane.tenancy.tenants import Tenant
from control_plane.tenancy.usage import Booking

logger = logging.getLogger(__name__)

OPEN_ANSWER_TOKENS = 512
"""Counted against a tenant's tokens per minute for an answer that names no limit, until its end is known."""
CLIENT_GONE = 499
"""The status in logs and metrics of a request whose client did not wait for the answer."""


@dataclass(frozen=True)
class Caller:
    """Who asks for what, as HTTP tells it."""

    tenant: Tenant
    request_id: str
    path: str
    timing: Timing


@dataclass
class Generation:
    """A request that was admitted: its sequences in the engine, and the answers that become of them."""

    request: GenerationRequest
    caller: Caller
    sequences: list[Sequence]
    choices: list[Choice]
    ticket: Ticket
    engine: Engine
    submitted: float
    status: int = CLIENT_GONE
    """The answer's; until there is one, the client may still go away."""
    finish_reasons: dict[int, str] = field(default_factory=dict)

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """The pieces of all choices as they come, each with its choice's index.

        Raises what ends the request: a `GatewayError`, an `EngineError`.
        """
        open_choices = len(self.choices)
        async for index, generated in self.engine.submit(self.sequences):
            choice = self.choices[index]
            if choice.stopped:
                continue
            piece = choice.add(generated)
            self.caller.timing.token(index)
            if piece.finish_reason:
                self.finish_reasons[index] = str(piece.finish_reason)
                open_choices -= 1
            yield index, piece
            if choice.stopped:
                self.engine.cancel([self.sequences[index]])
            if not open_choices:
                self.status = 200
                return

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts, each counted once however many answers it has."""
        return sum(sequence.num_prompt_tokens for sequence in self.sequences[:: self.request.n])

    @property
    def generated_tokens(self) -> int:
        """Of all answers so far."""
        return sum(choice.num_tokens for choice in self.choices)

    @property
    def expert_usage(self) -> ExpertUsage:
        """What calling experts for it has cost so far."""
        return sum((sequence.usage for sequence in self.sequences), ExpertUsage())

    def usage(self) -> dict[str, Any]:
        """OpenAI's usage, and beside it what the request's experts have cost."""
        experts = self.expert_usage
        return {
            **usage_body(self.prompt_tokens, self.generated_tokens),
            "experts": {
                "invocations": round(experts.invocations, 3),
                "cold_starts": round(experts.cold_starts, 3),
                "cold_experts": round(experts.cold_experts, 3),
                "wire_bytes": round(experts.wire_bytes),
                "seconds": round(experts.seconds, 6),
            },
        }

    def continuous_usage(self) -> Mapping[str, Any] | None:
        """OpenAI's usage so far, if the client wants it with every chunk."""
        if not self.request.continuous_usage:
            return None
        return usage_body(self.prompt_tokens, self.generated_tokens)

    def record(self) -> RequestRecord:
        """What is told of the request when it has ended."""
        started = [sequence.started for sequence in self.sequences if sequence.started is not None]
        experts = self.expert_usage
        timing = self.caller.timing
        return RequestRecord(
            tenant=self.caller.tenant.name,
            request_id=self.caller.request_id,
            path=self.caller.path,
            status=self.status,
            finish_reasons=tuple(self.finish_reasons.values()),
            prompt_tokens=self.prompt_tokens if started else 0,
            generated_tokens=self.generated_tokens,
            queue_seconds=min(started) - self.submitted if started else None,
            time_to_first_token=timing.time_to_first_token,
            inter_token_latencies=timing.inter_token_latencies,
            seconds=timing.seconds,
            expert_invocations=experts.invocations,
            expert_seconds=experts.seconds,
        )


@dataclass(frozen=True)
class Generations:
    """Starts and ends requests."""

    engine: Engine
    codec: TextCodec
    admission: Admission
    ledger: Ledger
    metrics: Metrics
    request_timeout: float
    """Seconds."""
    log_prompts: bool

    @asynccontextmanager
    async def start(self, request: GenerationRequest, caller: Caller) -> AsyncIterator[Generation]:
        """Admit the request; at the context's end nothing of it is left, and it is booked.

        Raises `BadRequest`, `ContextLengthExceeded`, `OutOfCache` or a `RetryLater`, and `RequestTimeout`
        when it takes too long.
        """
        prompts = [await self.encode(prompt) for prompt in request.prompts]
        sequences = [
            self._sequence(token_ids, request, caller, choice)
            for token_ids in prompts
            for choice in range(request.n)
        ]
        generation = self._admit(request, caller, sequences)
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
            await self._settle(generation)

    async def encode(self, prompt: Prompt, add_special_tokens: bool = True) -> list[int]:
        """The prompt's tokens; a long one takes seconds, in which other answers have to go on."""
        return await asyncio.to_thread(self.codec.encode, prompt, add_special_tokens)

    async def decode(self, token_ids: list[int]) -> str:
        """The tokens' text. Raises `BadRequest`."""
        return await asyncio.to_thread(self.codec.decode, token_ids)

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

    def _admit(self, request: GenerationRequest, caller: Caller, sequences: list[Sequence]) -> Generation:
        """Raises a `RetryLater`."""
        prompt_tokens = sum(sequence.num_prompt_tokens for sequence in sequences[:: request.n])
        answer_tokens = sum(
            sequence.params.max_tokens
            if request.max_tokens is not None
            else min(sequence.params.max_tokens, OPEN_ANSWER_TOKENS)
            for sequence in sequences
        )
        now = time.monotonic()
        try:
            ticket = self.admission.admit(caller.tenant, len(sequences), prompt_tokens + answer_tokens, now)
        except RetryLater as error:
            self.metrics.refused(caller.tenant.name, str(KINDS[type(error)].code))
            raise
        choices = [Choice(self.codec, request, sequence, index) for index, sequence in enumerate(sequences)]
        return Generation(request, caller, sequences, choices, ticket, self.engine, now)

    async def _settle(self, generation: Generation) -> None:
        """Give back what the request held, and tell what it was."""
        record = generation.record()
        used = record.prompt_tokens + record.generated_tokens
        self.admission.release(generation.ticket, used, time.monotonic())
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
        try:
            # Also when the client has gone: what was served is booked.
            await asyncio.shield(self.ledger.book(booking))
        except TenancyError:
            # The tenant has its answer; that it is not in the books is the operator's to know.
            logger.exception("not booked: %s", booking)

    def _prompt_text(self, generation: Generation) -> str:
        return "\n".join(
            self.codec.decode(sequence.token_ids[: sequence.num_prompt_tokens])
            for sequence in generation.sequences[:: generation.request.n]
        )
