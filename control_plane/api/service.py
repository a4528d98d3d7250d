"""Starts requests for text and ends them: admission before, metrics and the ledger after."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from collections.abc import Sequence as Items
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from control_plane.api.active_request import CLIENT_GONE, ActiveRequest, Caller
from control_plane.api.ignored_fields import IgnoredFields
from control_plane.api.openai.errors import KINDS
from control_plane.api.text.choice import Choice
from control_plane.api.text.codec import TextCodec
from control_plane.api.text.prompts import PromptEncoder
from control_plane.api.text.request import (
    Chat,
    GenerationRequest,
    Prompt,
    SamplingDefaults,
    Structure,
)
from control_plane.api.tools.model_format import ModelFormat
from control_plane.api.tools.parsing.grammar import arguments_schema
from control_plane.engine.engine import Engine
from control_plane.engine.grammar.compiler import GrammarCompiler
from control_plane.engine.state.sequence import Sequence
from control_plane.errors import (
    BadRequest,
    ContextLengthExceeded,
    FaaSMoEError,
    RequestTimeout,
    RetryLater,
    TenancyError,
    TokenizerError,
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
"""Tokens charged to the tenant's rate limit for an answer whose limit is the server's, until it has ended."""
CANCEL_SECONDS = 10.0
"""How long to wait for the step in which a request is cancelled."""


@dataclass(frozen=True)
class CompletionService:
    """Starts and ends requests for text."""

    engine: Engine
    codec: TextCodec
    format: ModelFormat
    prompts: PromptEncoder
    grammars: GrammarCompiler
    limiter: Limiter
    ledger: Ledger
    metrics: Metrics
    request_timeout: float
    """The longest that a request may take, in seconds."""
    log_prompts: bool
    defaults: SamplingDefaults
    """Sampling settings for requests that leave them out."""
    ignored_fields: IgnoredFields
    admitted: Callable[[], None]
    """Called for each request that is admitted, before its first step."""
    _locks: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)
    """A lock per tenant, which is held while the tenant's text is converted."""

    @asynccontextmanager
    async def start(self, request: GenerationRequest, caller: Caller) -> AsyncIterator[ActiveRequest]:
        """Admit a request. When the context ends, the request is cancelled, recorded and booked.

        Raises `BadRequest`, `ContextLengthExceeded`, `OutOfCache` or a `RetryLater`, and `RequestTimeout`
        when it takes too long.
        """
        self.ignored_fields.note(request.ignored_fields)
        request = self._resolved(request)
        prompts = [
            await self.encode(prompt, caller.tenant.name, request.add_special_tokens)
            for prompt in request.prompts
        ]
        sequences = [
            sequence for token_ids in prompts for sequence in self._sequences(token_ids, request, caller)
        ]
        await self._hold_to_grammars(request, sequences)
        active = await self._admit(request, caller, sequences)
        self.admitted()
        try:
            async with asyncio.timeout(None if caller.background else self.request_timeout):
                yield active
        except TimeoutError as error:
            active.status = KINDS[RequestTimeout].status
            raise RequestTimeout(f"the request took more than {self.request_timeout:g} s") from error
        except FaaSMoEError as error:
            active.status = KINDS[type(error)].status
            raise
        finally:
            self.engine.cancel(sequences)
            try:
                await self._wait_for_step(active)
            finally:
                await self._settle(active)

    async def encode(self, prompt: Prompt, tenant: str, add_special_tokens: bool = True) -> list[int]:
        """The tokens of a prompt.

        Raises `BadRequest`, `TokenizerError`, or `ContextLengthExceeded` if the prompt cannot fit.
        """
        prompt = self.format.prompt(prompt)
        least = self.codec.least_tokens(prompt)
        if least > self.engine.max_length:
            raise _too_long(prompt, f"at least {least}", self.engine.max_length)
        return await self._in_turn(tenant, lambda: self.prompts.encode(prompt, add_special_tokens))

    async def decode(self, token_ids: list[int], tenant: str) -> str:
        """The text of tokens. Raises `BadRequest`, or `TokenizerError`."""
        return await self._in_turn(tenant, lambda: asyncio.to_thread(self.codec.decode, token_ids))

    async def _in_turn(self, tenant: str, work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Do work that may take seconds, one piece at a time for each tenant.

        It keeps the tenant's lock when its client disconnects: otherwise clients could start any amount.
        """
        lock = self._locks.setdefault(tenant, asyncio.Lock())

        async def locked() -> Result:
            async with lock:
                return await work()

        return await asyncio.shield(asyncio.create_task(locked()))

    def _resolved(self, request: GenerationRequest) -> GenerationRequest:
        """The request with the ids of its stop strings that are special tokens. Raises `BadRequest`."""
        self.codec.check(list(request.logit_bias), "logit_bias")
        self.codec.check(list(request.stop_token_ids), "stop_token_ids")
        return replace(request, stop_token_ids=request.stop_token_ids | self.codec.special_ids(request.stop))

    def _sequences(self, token_ids: list[int], request: GenerationRequest, caller: Caller) -> list[Sequence]:
        """The sequences of the answers to one prompt. Raises what `_sequence` raises."""
        sequences = [self._sequence(token_ids, request, caller, choice) for choice in range(request.n)]
        key = object() if request.n > 1 else None
        stops = message_ends(token_ids, self.prompts.end_of_turn_ids)
        for sequence in sequences:
            sequence.prompt_key, sequence.stops = key, stops
        return sequences

    async def _hold_to_grammars(self, request: GenerationRequest, sequences: list[Sequence]) -> None:
        """Give matchers to sequences whose answers have to match calls, a structure, or one of the two.

        Raises `BadRequest` for what cannot be compiled.
        """
        use, tenant = request.tool_use, sequences[0].tenant
        structure = None if use and use.has_to_call else request.structure
        wanted = await self._grammar(structure, tenant) if structure else None
        groups: dict[str, list[Sequence]] = {}
        for index, sequence in enumerate(sequences):
            grammar = self.format.grammar(request, index, sequence.token_ids, wanted)
            if grammar is not None:
                groups.setdefault(grammar, []).append(sequence)
        for grammar, group in groups.items():
            field = structure.field if structure and grammar == wanted else "tools"
            if grammar != wanted:
                await self._check_calls(grammar, request, tenant)
            compiled = partial(asyncio.to_thread, self.grammars.compile, grammar, field)
            matcher = await self._in_turn(tenant, compiled)
            for sequence in group:
                sequence.matcher = matcher.copy()

    async def _check_calls(self, grammar: str, request: GenerationRequest, tenant: str) -> None:
        """Raise `BadRequest` for a grammar of calls that cannot be compiled. It names the tool at fault."""
        try:
            await self._grammar(Structure("grammar", "tools", grammar), tenant)
        except BadRequest:
            functions = [tool["function"] for tool in request.tool_use.tools] if request.tool_use else []
            for function in functions:
                field = f"tools.{function['name']}"
                await self._grammar(Structure("json_schema", field, arguments_schema(function)), tenant)
            raise

    async def _grammar(self, structure: Structure, tenant: str) -> str:
        return await self._in_turn(tenant, lambda: self.prompts.grammar(structure))

    def _sequence(
        self, token_ids: list[int], request: GenerationRequest, caller: Caller, choice: int
    ) -> Sequence:
        """A limit beyond what there is room for is cut: agents ask for 32,000 tokens of any model.

        Raises `ContextLengthExceeded` for a prompt that leaves no room for an answer.
        """
        limits = caller.tenant.limits
        most = min(limits.max_context or self.engine.max_length, self.engine.max_length)
        room = most - len(token_ids)
        # A request for no token, for the prompt's log-probabilities, needs no room.
        if room < (request.max_tokens != 0):
            raise _too_long(request.prompts[0], str(len(token_ids)), most)
        room = min(room, limits.max_output or room)
        max_tokens = room if request.max_tokens is None else min(request.max_tokens, room)
        params = request.sampling_params(max_tokens, choice, self.defaults)
        sequence = Sequence(
            caller.request_id,
            caller.tenant.name,
            list(token_ids),
            params,
            limits.weight,
            cache_salt=request.cache_salt,
            background=caller.background,
        )
        self.engine.check(sequence)
        return sequence

    async def _admit(
        self, request: GenerationRequest, caller: Caller, sequences: list[Sequence]
    ) -> ActiveRequest:
        """Charge the request to the tenant's limits. Raises a `RetryLater`."""
        prompt_tokens = sum(sequence.num_prompt_tokens for sequence in sequences[:: request.n])
        answer_tokens = sum(
            sequence.params.max_tokens
            if sequence.params.max_tokens == request.max_tokens
            else min(sequence.params.max_tokens, OPEN_ANSWER_TOKENS)
            for sequence in sequences
        )
        choices = [self._choice(request, sequence, index) for index, sequence in enumerate(sequences)]
        now = time.monotonic()
        try:
            self.ledger.check_room()
            ticket = await self.limiter.admit(caller.tenant, len(sequences), prompt_tokens + answer_tokens)
        except RetryLater as error:
            self.metrics.refused(caller.tenant.name, str(KINDS[type(error)].code))
            raise
        return ActiveRequest(request, caller, sequences, choices, ticket, self.engine, now)

    def _choice(self, request: GenerationRequest, sequence: Sequence, index: int) -> Choice:
        splitter = self.format.splitter(request, index, sequence.token_ids)
        return Choice(self.codec, request, sequence, index, splitter)

    async def _wait_for_step(self, active: ActiveRequest) -> None:
        """Wait for the step in which the sequences are cancelled, so that its cost is booked, too."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CANCEL_SECONDS):
                if active.stream:
                    await active.stream.ended()

    async def _settle(self, active: ActiveRequest) -> None:
        """Record the request that has ended, book it, and release what it held of the tenant's limits."""
        record = active.record()
        booking = Booking(
            tenant=record.tenant,
            at=time.time(),
            requests=1,
            prompt_tokens=record.prompt_tokens,
            generated_tokens=record.generated_tokens,
            expert_invocations=record.expert_invocations,
            expert_seconds=record.expert_seconds,
        )
        # Whatever needs no waiting comes first: if the client disconnects now, this stops at the booking.
        self.metrics.request_finished(record)
        if record.status == CLIENT_GONE:
            self.metrics.failed(record.status)
        log_request(record, self._prompt_text(active) if self.log_prompts else None)
        # Shielded, since tokens that were served are booked even if the client has disconnected.
        computed = record.prompt_tokens - record.cached_tokens + record.generated_tokens
        await asyncio.shield(self._book(active.ticket, booking, computed))

    async def _book(self, ticket: Ticket, booking: Booking, computed: int) -> None:
        """Book, and release all but the tokens that were computed.

        The tenant has its answer, so a failure to release is only logged.
        """
        # In this order: a budget counts the request as in progress until it is released.
        await self.ledger.book(booking)
        try:
            await self.limiter.release(ticket, computed)
        except TenancyError as error:
            logger.error("not released before it expires: %s", error)

    def _prompt_text(self, active: ActiveRequest) -> str:
        prompts = [each.token_ids[: each.num_prompt_tokens] for each in active.sequences[:: active.request.n]]
        try:
            return "\n".join(map(self.codec.decode, prompts))
        except TokenizerError as error:
            return f"({error})"


def message_ends(token_ids: Items[int], end_ids: frozenset[int]) -> tuple[int, ...]:
    """The numbers of tokens at the ends of the first message and of the last one.

    Other conversations are likely to share the first, and the next turn all, but not what follows: how an
    answer begins. A prompt without messages ends before its last token, which any answer needs.
    """
    ends = [number for number, token in enumerate(token_ids, 1) if token in end_ids]
    return tuple(sorted({ends[0], ends[-1]})) if ends else (len(token_ids) - 1,)


def _too_long(prompt: Prompt, tokens: str, most: int) -> ContextLengthExceeded:
    """The error in OpenAI's words, by which client libraries recognise that a chat is too long."""
    what = "messages" if isinstance(prompt, Chat) else "prompt"
    return ContextLengthExceeded(
        f"This model's maximum context length is {most} tokens. However, your {what} resulted in {tokens} "
        # LangChain looks for the code in the message, since OpenAI's client does not repeat the whole body.
        f"tokens. Please reduce the length of the {what}. (context_length_exceeded)",
        what,
        f"{tokens} tokens > {most}",
    )
