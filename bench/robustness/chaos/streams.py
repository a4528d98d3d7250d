"""Clients that stream greedy answers all the time, and compare each token with the known one."""

import asyncio
import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import aiohttp

from bench.comparison.greedy import GreedyAnswer
from bench.robustness.stack import Part
from bench.support import requests

ATTEMPT_SECONDS = 150.0
"""How long a client waits for a whole answer. Then it counts as lost."""
CONNECT_SECONDS = 5.0
RETRY_SECONDS = 1.0
"""Pause after a refusal that does not say how long to wait."""
MAX_RETRY_SECONDS = 10.0
NOTED_SECONDS = 0.1
"""Shorter pauses between tokens are not recorded."""
REFUSALS = (429, 503)
"""Statuses with which a server refuses a request that may come again."""


class Ending(StrEnum):
    """How an attempt to get an answer has ended."""

    COMPLETED = "completed"
    REFUSED = "refused"
    """No connection, or a status of `REFUSALS`. The client asks again."""
    CUT = "cut"
    """Its connection broke since the control plane that served it was killed."""
    LOST = "lost"
    """Anything else: an error, an answer that is too short, or none in time."""


@dataclass(frozen=True)
class Attempt:
    """One HTTP request for an answer. Times are in seconds of time.perf_counter()."""

    tenant: str
    ended: float
    ending: Ending
    tokens: int = 0
    """Tokens that have arrived."""
    wrong: int = 0
    """Tokens that differ from the known ones, or are too many."""
    sent: bool = True
    """Whether a server may have seen it."""
    problem: str = ""
    retry_after: float = RETRY_SECONDS


@dataclass(frozen=True)
class Stall:
    """A time without a token for a client that waits for one."""

    began: float
    ended: float

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.ended - self.began


@dataclass
class Flow:
    """The tokens of one client over all its answers."""

    stalls: list[Stall] = field(default_factory=list)
    """Those of at least `NOTED_SECONDS` that are over."""
    _since: float | None = None

    def wait(self) -> None:
        """Note that the client waits for a token from now on, if it does not already."""
        if self._since is None:
            self._since = time.perf_counter()

    def token(self) -> None:
        """Note that a token has arrived."""
        self.end()
        self.wait()

    def end(self) -> None:
        """Note that the client waits no more."""
        now = time.perf_counter()
        if self._since is not None and now - self._since >= NOTED_SECONDS:
            self.stalls.append(Stall(self._since, now))
        self._since = None

    def stalls_since(self, moment: float) -> list[Stall]:
        """Stalls that have ended after a moment, and the one that goes on."""
        recent = itertools.takewhile(lambda stall: stall.ended > moment, reversed(self.stalls))
        now = [] if self._since is None else [Stall(self._since, time.perf_counter())]
        return [*recent, *now]


@dataclass
class Streams:
    """A number of clients, each of which asks for one answer after the other."""

    client: aiohttp.ClientSession
    server: Part
    keys: Mapping[str, str]
    known: Sequence[GreedyAnswer]
    attempts: list[Attempt] = field(default_factory=list)
    flows: list[Flow] = field(default_factory=list)
    failed_at: float = 0.0
    """When a wrong token has arrived, or an attempt has ended without its answer, for the last time."""
    _ending: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def running(self, count: int, seed: int) -> AsyncIterator[None]:
        """Run `count` clients, which the tenants share. At the end, wait for their last answers."""
        tenants = list(self.keys)
        self.flows += [Flow() for _ in range(count)]
        tasks = [
            asyncio.create_task(self._keep_asking(tenants[number % len(tenants)], flow, f"{seed}-{number}"))
            for number, flow in enumerate(self.flows)
        ]
        try:
            yield
            self._ending.set()
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def ask(self, tenant: str, answer: GreedyAnswer, flow: Flow) -> Attempt:
        """Ask once for a known answer."""
        kills = self.server.kills
        got: list[int] = []

        def ended(ending: Ending, problem: str = "", **others: Any) -> Attempt:
            now, wrong = time.perf_counter(), _wrong(got, answer.tokens)
            return Attempt(tenant, now, ending, len(got), wrong, problem=problem, **others)

        try:
            async with self._post(tenant, answer) as response:
                if response.status != 200:
                    problem = f"{response.status}: {(await response.text())[:300]}"
                    ending = Ending.REFUSED if response.status in REFUSALS else Ending.LOST
                    return ended(ending, problem, retry_after=_retry_after(response))
                async for line in response.content:
                    if line.startswith(b'data: {"error"'):
                        return ended(Ending.LOST, line.decode(errors="replace")[:300])
                    if line.startswith(b"data: {"):
                        got += json.loads(line.removeprefix(b"data: "))["choices"][0]["token_ids"]
                        flow.token()
                        if _wrong(got, answer.tokens):
                            self.failed_at = time.perf_counter()
                    elif line.startswith(b"data: [DONE]") and len(got) >= len(answer.tokens):
                        return ended(Ending.COMPLETED)
            return ended(Ending.LOST, f"it ended after {len(got)} of {len(answer.tokens)} tokens")
        except aiohttp.ClientConnectorError as error:
            return ended(Ending.REFUSED, str(error), sent=False)
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError) as error:
            was_killed = kills % 2 == 1 or self.server.kills != kills
            cut = was_killed and not isinstance(error, TimeoutError)
            return ended(Ending.CUT if cut else Ending.LOST, f"{type(error).__name__}: {error}")
        except (aiohttp.ClientError, ValueError, LookupError, TypeError) as error:
            return ended(Ending.LOST, f"{type(error).__name__}: {error}")

    async def _keep_asking(self, tenant: str, flow: Flow, seed: str) -> None:
        """Ask for known answers in random order. A refused request is sent again.

        The client's wait for a token ends with a token or a whole answer only.
        """
        numbers = random.Random(seed)
        answer = numbers.choice(self.known)
        while not self._ending.is_set():
            flow.wait()
            attempt = await self.ask(tenant, answer, flow)
            self.attempts.append(attempt)
            if attempt.ending is Ending.COMPLETED:
                flow.end()
            else:
                self.failed_at = attempt.ended
                await self._pause(attempt.retry_after)
            if attempt.ending is not Ending.REFUSED:
                answer = numbers.choice(self.known)
        flow.end()

    async def _pause(self, seconds: float) -> None:
        """Wait, but not beyond the end of the run."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ending.wait()

    def _post(self, tenant: str, answer: GreedyAnswer) -> Any:
        body = {
            "prompt": answer.prompt,
            "max_tokens": len(answer.tokens),
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
        }
        return self.client.post(
            f"{self.server.url}/v1/completions",
            json=body,
            headers={"Authorization": f"Bearer {self.keys[tenant]}"},
            timeout=aiohttp.ClientTimeout(total=ATTEMPT_SECONDS, sock_connect=CONNECT_SECONDS),
        )


@asynccontextmanager
async def connected(
    server: Part, keys: Mapping[str, str], known: Sequence[GreedyAnswer]
) -> AsyncIterator[Streams]:
    """Streams with connections of their own, which are closed at the end."""
    async with requests.session() as client:
        yield Streams(client, server, keys, known)


def _wrong(got: Sequence[int], known: Sequence[int]) -> int:
    differing = sum(1 for token, wanted in zip(got, known, strict=False) if token != wanted)
    return differing + max(0, len(got) - len(known))


def _retry_after(response: aiohttp.ClientResponse) -> float:
    """The pause that the server asks for, in seconds, within limits."""
    try:
        return min(float(response.headers["Retry-After"]), MAX_RETRY_SECONDS)
    except (KeyError, ValueError):
        return RETRY_SECONDS
