"""Requests to an OpenAI server, timed from outside."""

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from control_plane.errors import FaaSMoEError

REQUEST_SECONDS = 600.0


@dataclass
class StreamTiming:
    """What the client of one streamed answer saw; seconds of time.perf_counter()."""

    sent: float
    tokens: list[float] = field(default_factory=list)
    """When each token came."""
    token_ids: list[int] = field(default_factory=list)
    """If they were asked for."""

    @property
    def time_to_first_token(self) -> float:
        """Seconds."""
        return self.tokens[0] - self.sent


def session() -> aiohttp.ClientSession:
    """A client without a limit of its own on connections, each of which is for one request.

    Some servers close a connection after a stream without having said so, as the next request is on its way.
    """
    timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True), timeout=timeout)


def random_prompt(length: int, seed: int, vocab_size: int) -> list[int]:
    """Token ids, the same for the same arguments; the first ids, which are often special, are left out."""
    generator = random.Random(seed)
    return [generator.randrange(16, vocab_size) for _ in range(length)]


async def stream(
    client: aiohttp.ClientSession,
    url: str,
    key: str | None,
    prompt: list[int],
    max_tokens: int,
    on_token: Callable[[], None] = lambda: None,
    *,
    user: str | None = None,
    seed: int | None = None,
    tell_tokens: Sequence[str] = (),
) -> StreamTiming:
    """Have exactly `max_tokens` generated. Raises `FaaSMoEError` when the server refuses or falls short.

    `tell_tokens` are fields that have the server tell tokens' ids.
    A server without keys is told the user instead. Without a seed, the likeliest tokens are taken; with one,
    they are sampled at temperature 1.
    """
    body = {
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0 if seed is None else 1,
        "seed": seed,
        "user": user,
        "ignore_eos": True,
        "stream": True,
        **dict.fromkeys(tell_tokens, True),
    }
    timing = StreamTiming(time.perf_counter())
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with client.post(f"{url}/v1/completions", json=body, headers=headers) as answer:
        if answer.status != 200:
            raise FaaSMoEError(f"{url} answered {answer.status}: {await answer.text()}")
        async for line in answer.content:
            if line.startswith(b'data: {"error"'):
                raise FaaSMoEError(json.loads(line.removeprefix(b"data: "))["error"]["message"])
            # llama.cpp ends with an event that has no token.
            if line.startswith(b"data: {") and len(timing.tokens) < max_tokens:
                timing.tokens.append(time.perf_counter())
                if tell_tokens:
                    timing.token_ids += _token_ids(json.loads(line.removeprefix(b"data: ")))
                on_token()
    if len(timing.tokens) < max_tokens:
        raise FaaSMoEError(f"{url} generated {len(timing.tokens)} of {max_tokens} tokens")
    return timing


def _token_ids(event: dict[str, Any]) -> list[int]:
    """Of an event of one choice."""
    ids: list[int] = (
        event["__verbose"]["tokens"] if "__verbose" in event else event["choices"][0]["token_ids"]
    )
    return ids
