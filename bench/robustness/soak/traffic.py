"""Mixed requests of several tenants: whole and streamed answers, cancelled ones, and refused ones."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

TEXTS = ("And it came to pass", "Close the file.", "Wenn Sie das Paket", "def close(self):")
MAX_TOKENS = 24
BAD_BODIES: tuple[Mapping[str, Any], ...] = (
    {},
    {"prompt": "x", "max_tokens": -1},
    {"prompt": "x", "temperature": "warm"},
    {"prompt": [1 << 40]},
    {"prompt": "x" * 100_000},
    {"prompt": "x", "suffix": "y"},
)
REQUEST_SECONDS = 120.0

Send = Callable[[str, random.Random], Awaitable[None]]


class Unexpected(Exception):
    """A server has answered otherwise than it should."""


@dataclass
class Traffic:
    """Sends requests of random kinds, and counts them by kind."""

    client: aiohttp.ClientSession
    url: str
    keys: Mapping[str, str]
    sent: Counter[str] = field(default_factory=Counter)
    unexpected: list[str] = field(default_factory=list)
    """One line for each answer that is not what the request should get."""

    async def run(self, clients: int, seconds: float, seed: int) -> None:
        """Have that many clients send one request after the other for some seconds."""
        end = asyncio.get_running_loop().time() + seconds
        await asyncio.gather(*(self._keep_sending(f"{seed}-{number}", end) for number in range(clients)))

    async def _keep_sending(self, seed: str, end: float) -> None:
        numbers = random.Random(seed)
        kinds: dict[str, Send] = {
            "chat": self._chat,
            "completion": self._completion,
            "stream": self._stream,
            "cancelled stream": self._cancelled,
            "bad request": self._bad,
        }
        while asyncio.get_running_loop().time() < end:
            kind, tenant = numbers.choice(list(kinds)), numbers.choice(list(self.keys))
            try:
                await kinds[kind](tenant, numbers)
            except (Unexpected, aiohttp.ClientError, TimeoutError) as error:
                self.unexpected.append(f"{kind}: {error or type(error).__name__}")
            self.sent[kind] += 1

    async def _chat(self, tenant: str, numbers: random.Random) -> None:
        messages = [{"role": "user", "content": numbers.choice(TEXTS)}]
        async with self._post("/v1/chat/completions", tenant, {"messages": messages}) as answer:
            await _expect(answer, 200)

    async def _completion(self, tenant: str, numbers: random.Random) -> None:
        body = {"prompt": numbers.choice(TEXTS), "n": numbers.randint(1, 3)}
        async with self._post("/v1/completions", tenant, body) as answer:
            await _expect(answer, 200)

    async def _stream(self, tenant: str, numbers: random.Random) -> None:
        body = {"prompt": numbers.choice(TEXTS), "stream": True}
        async with self._post("/v1/completions", tenant, body) as answer:
            text = await _expect(answer, 200)
        if not text.endswith("data: [DONE]\n\n") or '"error":{' in text:
            raise Unexpected(f"a stream has ended with {text[-200:]!r}")

    async def _cancelled(self, tenant: str, numbers: random.Random) -> None:
        body = {"prompt": numbers.choice(TEXTS), "stream": True, "ignore_eos": True}
        async with self._post("/v1/completions", tenant, body) as answer:
            for _ in range(numbers.randint(0, 8)):
                await answer.content.readline()
            answer.close()

    async def _bad(self, tenant: str, numbers: random.Random) -> None:
        async with self._post("/v1/completions", tenant, numbers.choice(BAD_BODIES)) as answer:
            await _expect(answer, 400)

    def _post(self, path: str, tenant: str, body: Mapping[str, Any]) -> Any:
        return self.client.post(
            self.url + path,
            json={"max_tokens": MAX_TOKENS, **body},
            headers={"Authorization": f"Bearer {self.keys[tenant]}"},
            timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS),
        )


async def _expect(answer: aiohttp.ClientResponse, status: int) -> str:
    text = await answer.text()
    if answer.status != status:
        raise Unexpected(f"{answer.status} instead of {status}: {text[:200]}")
    return text
