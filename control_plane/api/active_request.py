"""One request for text that was let in: its sequences in the engine, and the answers that become of them."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from control_plane.api.choice import Choice, Piece
from control_plane.api.openai.answers import usage_body
from control_plane.api.openai.requests import GenerationRequest
from control_plane.api.timing import Timing
from control_plane.engine.engine import Engine
from control_plane.engine.sequence import Sequence
from control_plane.engine.stream import TokenStream
from control_plane.faas.invocation import ExpertUsage
from control_plane.observability.metrics import RequestRecord
from control_plane.tenancy.limits.admission import Ticket
from control_plane.tenancy.tenants import Tenant

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
    stream: TokenStream | None = None

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """The pieces of all choices as they come, each with its choice's index.

        Raises what ends the request: a `GatewayError`, an `EngineError`.
        """
        open_choices = len(self.choices)
        self.stream = self.engine.submit(self.sequences)
        async for index, generated in self.stream:
            choice = self.choices[index]
            if choice.stopped:
                continue
            # What a long echo says of its tokens takes a while; other answers go on meanwhile.
            aside = choice.num_tokens == 0 and self.request.echo and self.request.logprobs is not None
            piece = await asyncio.to_thread(choice.add, generated) if aside else choice.add(generated)
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
