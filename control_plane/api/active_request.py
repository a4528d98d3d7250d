"""One admitted request for text: its sequences in the engine, and its answers."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from control_plane.api.text.answer_format import Usage
from control_plane.api.text.choice import Choice, Piece
from control_plane.api.text.request import GenerationRequest
from control_plane.engine.engine import Engine
from control_plane.engine.state.sequence import Sequence
from control_plane.engine.stream import TokenStream
from control_plane.faas.invocation import ExpertUsage
from control_plane.observability.request_record import RequestRecord
from control_plane.tenancy.limits.admission import Ticket
from control_plane.tenancy.tenants import Tenant

CLIENT_GONE = 499
"""The status, in logs and metrics, of a request whose client did not wait for the answer."""


@dataclass
class RequestTiming:
    """The times at which a request's tokens were generated, in seconds of time.monotonic()."""

    arrived: float = field(default_factory=time.monotonic)
    first_token: float | None = None
    inter_token_latencies: list[float] = field(default_factory=list)
    """Seconds between successive tokens of the same choice."""
    _last_tokens: dict[int, float] = field(default_factory=dict)

    def add_token(self, choice: int) -> None:
        """Record that a token of that choice was generated now."""
        now = time.monotonic()
        if self.first_token is None:
            self.first_token = now
        if choice in self._last_tokens:
            self.inter_token_latencies.append(now - self._last_tokens[choice])
        self._last_tokens[choice] = now

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds from arrival to the first token; None before it."""
        return None if self.first_token is None else self.first_token - self.arrived

    @property
    def seconds(self) -> float:
        """Seconds since the request arrived."""
        return time.monotonic() - self.arrived


@dataclass(frozen=True)
class Caller:
    """The tenant that sends a request, and the identity of its HTTP request."""

    tenant: Tenant
    request_id: str
    path: str
    timing: RequestTiming
    background: bool = False
    """Whether nobody waits for the answer. The request then gives way to all others, without a time limit."""


@dataclass
class ActiveRequest:
    """A request that was admitted and has not ended."""

    request: GenerationRequest
    caller: Caller
    sequences: list[Sequence]
    """One for each choice; the choices of a prompt follow each other."""
    choices: list[Choice]
    ticket: Ticket
    engine: Engine
    submitted: float
    """When it was ready for admission, in seconds of time.monotonic()."""
    status: int = CLIENT_GONE
    """The HTTP status for logs and metrics. It stays `CLIENT_GONE` until all choices or an error end it."""
    finish_reasons: dict[int, str] = field(default_factory=dict)
    """Why each choice that ended did so, by the choice's index."""
    stream: TokenStream | None = None

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Run the request; yields the pieces of all choices, each with its choice's index.

        Raises a `GatewayError` or an `EngineError` that ends the request.
        """
        open_choices = len(self.choices)
        self.stream = self.engine.submit(self.sequences)
        async for index, generated in self.stream:
            choice = self.choices[index]
            if choice.stopped:
                continue
            # The report on the tokens of a long echo takes a while: build it without blocking the event loop.
            is_slow = choice.num_tokens == 0 and self.request.echo and self.request.logprobs is not None
            piece = await asyncio.to_thread(choice.add, generated) if is_slow else choice.add(generated)
            self.caller.timing.add_token(index)
            if piece.finish_reason:
                self.finish_reasons[index] = str(piece.finish_reason)
                open_choices -= 1
            yield index, piece
            if choice.stopped:
                self.engine.cancel([self.sequences[index]])
            if not open_choices:
                self.status = 200
                return

    async def whole(self) -> list[list[Piece]]:
        """Run the request; returns the pieces of each choice in order. Raises what `pieces` raises."""
        found: list[list[Piece]] = [[] for _ in self.choices]
        async for index, piece in self.pieces():
            found[index].append(piece)
        return found

    @property
    def prompt_tokens(self) -> int:
        """The tokens of all prompts. A prompt counts once, however many answers it has."""
        return sum(sequence.num_prompt_tokens for sequence in self.sequences[:: self.request.n])

    @property
    def cached_tokens(self) -> int:
        """Those of them that were there from earlier requests."""
        return sum(sequence.num_cached for sequence in self.sequences[:: self.request.n])

    @property
    def generated_tokens(self) -> int:
        """The tokens of all answers so far."""
        return sum(choice.num_tokens for choice in self.choices)

    @property
    def expert_usage(self) -> ExpertUsage:
        """The request's share of the expert calls so far."""
        return sum((sequence.usage for sequence in self.sequences), ExpertUsage())

    @property
    def usage(self) -> Usage:
        """The cost of the request so far."""
        return Usage(self.prompt_tokens, self.cached_tokens, self.generated_tokens, self.expert_usage)

    def record(self) -> RequestRecord:
        """Summarise the request for metrics, logs and the ledger."""
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
            cached_tokens=self.cached_tokens,
            generated_tokens=self.generated_tokens,
            queue_seconds=min(started) - self.submitted if started else None,
            time_to_first_token=timing.time_to_first_token,
            inter_token_latencies=timing.inter_token_latencies,
            seconds=timing.seconds,
            expert_invocations=experts.invocations,
            expert_seconds=experts.seconds,
        )
