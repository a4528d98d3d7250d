"""Sends requests to an OpenAI server, and times the answers."""

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from control_plane.errors import FaaSMoEError

REQUEST_SECONDS = 600.0
FAILURES = (FaaSMoEError, aiohttp.ClientError, TimeoutError, ValueError, OSError)
"""Errors with which one measurement may fail while the others continue."""


@dataclass
class StreamTiming:
    """A streamed answer as its client saw it. Times are in seconds of time.perf_counter()."""

    sent: float
    tokens: list[float] = field(default_factory=list)
    """Arrival time of each token."""
    token_ids: list[int] = field(default_factory=list)
    """Ids of the tokens, if they were requested."""

    @property
    def time_to_first_token(self) -> float:
        """Seconds from sending the request to its first token."""
        return self.tokens[0] - self.sent


def session() -> aiohttp.ClientSession:
    """A client without a limit on connections, and with a new connection for each request.

    Some servers close a connection after a stream without announcing it, when the next request is under way.
    """
    timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True), timeout=timeout)


def random_prompt(length: int, seed: int, vocab_size: int) -> list[int]:
    """Token ids that depend on the arguments alone. Leaves out the first ids, which are often special."""
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
    token_id_fields: Sequence[str] = (),
) -> StreamTiming:
    """Have exactly `max_tokens` tokens generated, and call `on_token` as each arrives.

    `user` identifies the tenant to a server without keys. Without a seed, decoding is greedy; with one,
    tokens are sampled at temperature 1. `token_id_fields` are fields of the request that make this server
    return token ids. Raises `FaaSMoEError` if the server refuses the request or generates fewer tokens.
    """
    body = {
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0 if seed is None else 1,
        "seed": seed,
        "user": user,
        "ignore_eos": True,
        "stream": True,
        **dict.fromkeys(token_id_fields, True),
    }
    timing = StreamTiming(time.perf_counter())
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with client.post(f"{url}/v1/completions", json=body, headers=headers) as answer:
        if answer.status != 200:
            raise FaaSMoEError(f"{url} answered {answer.status}: {await answer.text()}")
        async for line in answer.content:
            if line.startswith(b'data: {"error"'):
                raise FaaSMoEError(json.loads(line.removeprefix(b"data: "))["error"]["message"])
            # llama.cpp ends a stream with an event that has no token.
            if line.startswith(b"data: {") and len(timing.tokens) < max_tokens:
                timing.tokens.append(time.perf_counter())
                if token_id_fields:
                    timing.token_ids += _token_ids(json.loads(line.removeprefix(b"data: ")))
                on_token()
    if len(timing.tokens) < max_tokens:
        raise FaaSMoEError(f"{url} generated {len(timing.tokens)} of {max_tokens} tokens")
    return timing


def reasons(failed: BaseExceptionGroup[BaseException]) -> str:
    """The messages of all errors in a group, in one line and without repetitions."""
    return "; ".join(dict.fromkeys(_reasons(failed)))


def _reasons(failed: BaseExceptionGroup[BaseException]) -> Iterator[str]:
    for error in failed.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _reasons(error)
        else:
            yield " ".join(str(error).split()) or type(error).__name__


def _token_ids(event: dict[str, Any]) -> list[int]:
    """Token ids of an event with one choice, as llama.cpp or vLLM and FaaSMoE return them."""
    ids: list[int] = (
        event["__verbose"]["tokens"] if "__verbose" in event else event["choices"][0]["token_ids"]
    )
    return ids
