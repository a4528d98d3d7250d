"""Replays a workload against servers over their public API, and records the outcome of each request."""

import asyncio
import itertools
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from tokenizers import Tokenizer

from bench.comparison.workload.workload import WorkloadRequest
from bench.support import requests
from control_plane.errors import FaaSMoEError


@dataclass(frozen=True)
class Endpoint:
    """The server that a tenant's requests go to."""

    url: str
    key: str | None = None
    """API key; None for a server without keys."""
    token_id_fields: Sequence[str] = ("return_token_ids",)
    """Fields of a request that make this server return token ids."""


@dataclass(frozen=True)
class RequestOutcome:
    """One request as its client saw it. Times are in seconds since the replay began."""

    tenant: str
    round: int
    arrival: float
    """When the request was due. It is sent then, unless the client itself is late."""
    sent: float
    prompt_tokens: int
    output_tokens: int
    """Number of tokens that were requested."""
    tokens: Sequence[float] = field(default_factory=list)
    """Arrival time of each token."""
    ended: float = 0.0
    error: str = ""

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds from when the request was due; None without a token."""
        return self.tokens[0] - self.arrival if self.tokens else None

    @property
    def gaps(self) -> list[float]:
        """Seconds between consecutive tokens."""
        return [later - earlier for earlier, later in itertools.pairwise(self.tokens)]


@dataclass(frozen=True)
class PromptTokens:
    """Turns the prompt of a request into token ids, the same for every server that is compared."""

    vocab_size: int
    tokenizer: Tokenizer | None = None

    @classmethod
    def of_model(cls, folder: Path, vocab_size: int) -> "PromptTokens":
        """Use the tokenizer in a model's folder, if there is one."""
        file = folder / "tokenizer.json"
        return cls(vocab_size, Tokenizer.from_file(str(file)) if file.exists() else None)

    def of(self, request: WorkloadRequest, seed: int) -> list[int]:
        """Token ids of the prompt's text, or random ones if the request has only their number.

        Without a tokenizer, each word becomes one token, and the same word always the same token.
        """
        if request.prompt is None:
            return requests.random_prompt(request.prompt_tokens or 1, seed, self.vocab_size)
        if self.tokenizer is not None:
            ids: list[int] = self.tokenizer.encode(request.prompt).ids
            return ids
        first = min(16, self.vocab_size - 1)
        words = request.prompt.split() or [request.prompt]
        return [first + zlib.crc32(word.encode()) % (self.vocab_size - first) for word in words]


async def replay(
    client: aiohttp.ClientSession,
    endpoints: Mapping[str, Endpoint],
    workload: Sequence[WorkloadRequest],
    tokens: PromptTokens,
    seed: int,
    on_end: Callable[[RequestOutcome], None] = lambda _: None,
) -> list[RequestOutcome]:
    """Send all requests, and return their outcomes in the workload's order. A failure is an outcome, too.

    A request is sent when it is due, even if earlier ones are unanswered. A round begins when the one before
    it has ended.
    """
    clock = asyncio.get_running_loop().time
    began = clock()
    numbers = random.Random(seed)
    outcomes: list[RequestOutcome] = []
    for _, group in itertools.groupby(workload, key=lambda request: request.round):
        start = clock()

        async def ask(request: WorkloadRequest, prompt: list[int], start: float = start) -> RequestOutcome:
            due = start + request.arrival
            await asyncio.sleep(due - clock())
            outcome = await _ask(client, endpoints[request.tenant], request, prompt, began, due - began)
            on_end(outcome)
            return outcome

        async with asyncio.TaskGroup() as tasks:
            asked = [
                tasks.create_task(ask(request, tokens.of(request, numbers.randrange(1 << 31))))
                for request in group
            ]
        outcomes += [task.result() for task in asked]
    return outcomes


async def _ask(
    client: aiohttp.ClientSession,
    endpoint: Endpoint,
    request: WorkloadRequest,
    prompt: list[int],
    began: float,
    arrival: float,
) -> RequestOutcome:
    clock = asyncio.get_running_loop().time
    sent = clock() - began
    moments: list[float] = []
    error = ""
    try:
        await requests.stream(
            client,
            endpoint.url,
            endpoint.key,
            prompt,
            request.output_tokens,
            lambda: moments.append(clock() - began),
            user=request.tenant,
        )
    except (FaaSMoEError, aiohttp.ClientError, TimeoutError) as problem:
        error = str(problem) or type(problem).__name__
    return RequestOutcome(
        request.tenant,
        request.round,
        arrival,
        sent,
        len(prompt),
        request.output_tokens,
        moments,
        clock() - began,
        error,
    )
