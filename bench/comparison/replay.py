"""Replays a workload against servers, over their public API, and writes down what each request met."""

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
    """Where a tenant's requests go, the key that they carry, if any, and its dialect."""

    url: str
    key: str | None = None
    tell_tokens: Sequence[str] = ("return_token_ids",)
    """Fields of a request that have this server tell tokens' ids."""


@dataclass(frozen=True)
class RequestOutcome:
    """One request, as its client saw it. Times are in seconds since the replay began."""

    tenant: str
    round: int
    arrival: float
    """When it was due; it is sent then, unless the client itself is late."""
    sent: float
    prompt_tokens: int
    output_tokens: int
    """That were asked for."""
    tokens: Sequence[float] = field(default_factory=list)
    """When each token came."""
    ended: float = 0.0
    error: str = ""

    @property
    def time_to_first_token(self) -> float | None:
        """From when it was due; None when there was none."""
        return self.tokens[0] - self.arrival if self.tokens else None

    @property
    def gaps(self) -> list[float]:
        """From each token to the next one."""
        return [later - earlier for earlier, later in itertools.pairwise(self.tokens)]


@dataclass(frozen=True)
class PromptTokens:
    """Makes token ids of a request's prompt, the same for every server that is compared."""

    vocab_size: int
    tokenizer: Tokenizer | None = None

    @classmethod
    def of_model(cls, folder: Path, vocab_size: int) -> "PromptTokens":
        """With the model's own tokenizer, if it has one."""
        file = folder / "tokenizer.json"
        return cls(vocab_size, Tokenizer.from_file(str(file)) if file.exists() else None)

    def of(self, request: WorkloadRequest, seed: int) -> list[int]:
        """Those of its text; or at random, as many as it says.

        Where there is no tokenizer, a word stands for one token, wherever it occurs.
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
    """What became of each request, in the workload's order. What fails is told in its outcome.

    A request is sent when it is due, whatever else is unanswered; a round when the one before it has ended.
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
