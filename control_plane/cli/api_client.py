"""A client of the control plane's API, for the command line, the demo and the benchmarks."""

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

import aiohttp
from yarl import URL

from control_plane.errors import BadRequest, FaaSMoEError, InvalidApiKey, RetryLater
from control_plane.http import connection_problem


@dataclass(frozen=True)
class Question:
    """A prompt, with the options of its answer."""

    text: str
    tenant: str
    """Tenant to ask as, where the server takes requests without a key. A key takes precedence."""
    max_tokens: int
    """Most tokens to generate."""
    temperature: float = 0.0
    seed: int | None = None
    raw: bool = False
    """True continues the text itself; False answers it as a message in a chat."""

    def body(self) -> dict[str, Any]:
        """The body of the request to OpenAI's API."""
        prompt = {"prompt": self.text} if self.raw else {"messages": [{"role": "user", "content": self.text}]}
        return {
            **prompt,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
            "user": self.tenant,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


@dataclass(frozen=True)
class PromptAnswer:
    """The model's answer to a prompt, with the client's measurements."""

    text: str
    finish_reason: str
    """Why generation ended, in OpenAI's terms: "stop" or "length"."""
    usage: dict[str, Any]
    """Numbers of tokens, as the server counts them."""
    time_to_first_token: float
    """Seconds from the request to the first event."""
    seconds: float
    """Seconds from the request to the end of the answer."""

    @property
    def tokens_per_second(self) -> float:
        """Rate of the tokens after the first one; 0 if there is only one."""
        tokens = self.usage["completion_tokens"] - 1
        return tokens / max(self.seconds - self.time_to_first_token, 1e-9) if tokens > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """The object that `faasmoe prompt --json` prints."""
        return {**asdict(self), "tokens_per_second": round(self.tokens_per_second, 2)}


class Client:
    """A client of one control plane.

    Every call raises a `FaaSMoEError` if the server is unreachable or refuses the request.
    """

    def __init__(self, url: URL, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._session = session

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: URL, key: str | None = None) -> AsyncIterator["Client"]:
        """Open a client, which sends a tenant's key if there is one. Leaving the context closes it."""
        timeout = aiohttp.ClientTimeout(total=None, connect=5, sock_read=300)
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        async with aiohttp.ClientSession(timeout=timeout, headers=headers) as session:
            yield cls(url, session)

    async def ask(self, question: Question, on_text: Callable[[str], None] | None = None) -> PromptAnswer:
        """Send a prompt and return the whole answer. `on_text` is called with each piece as it arrives."""
        path = "/v1/completions" if question.raw else "/v1/chat/completions"
        started = time.perf_counter()
        first, finish_reason = 0.0, ""
        pieces: list[str] = []
        usage: dict[str, Any] = {}
        async for event in self._events(path, question.body()):
            first = first or time.perf_counter() - started
            for choice in event["choices"]:
                piece = choice["text"] if question.raw else choice["delta"].get("content", "")
                finish_reason = choice["finish_reason"] or finish_reason
                pieces.append(piece)
                if on_text and piece:
                    on_text(piece)
            usage = event.get("usage") or usage
        if not usage:
            raise FaaSMoEError(f"the answer of {self._url} is incomplete")
        return PromptAnswer("".join(pieces), finish_reason, usage, first, time.perf_counter() - started)

    async def status(self) -> dict[str, Any]:
        """Fetch the report of GET /status on the control plane and its functions."""
        try:
            async with self._session.get(self._url.join(URL("/status"))) as answer:
                await self._check(answer)
                report = await answer.json()
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise self._away(error) from error
        if not isinstance(report, dict) or not {"engine", "functions", "gateways"} <= report.keys():
            raise FaaSMoEError(f"{self._url} is not a FaaSMoE control plane")
        return report

    async def _events(self, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        try:
            async with self._session.post(self._url.join(URL(path)), json=body) as answer:
                await self._check(answer)
                async for line in answer.content:
                    if line.startswith(b"data: {"):
                        event = json.loads(line.removeprefix(b"data: "))
                        if error := event.get("error"):
                            raise FaaSMoEError(error["message"])
                        if not isinstance(event.get("choices"), list):
                            raise FaaSMoEError(f"{self._url} is not a FaaSMoE control plane")
                        yield event
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise self._away(error) from error

    async def _check(self, answer: aiohttp.ClientResponse) -> None:
        if answer.status == 200:
            return
        text = await answer.text()
        try:
            message = json.loads(text)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = f"{self._url} answered {answer.status}: {text[:200]}"
        raise _refusal(answer, message)

    def _away(self, error: Exception) -> FaaSMoEError:
        return FaaSMoEError(f"no FaaSMoE control plane answers at {self._url}: {connection_problem(error)}")


def _refusal(answer: aiohttp.ClientResponse, message: str) -> FaaSMoEError:
    """The error for a refused request, with advice on what to do about it."""
    if answer.status == 400:
        return BadRequest(message)
    if answer.status == 401:
        return InvalidApiKey(f"{message} (set the key with --key-file or $FAASMOE_API_KEY)")
    if answer.status not in (429, 503):
        return FaaSMoEError(message)
    seconds = answer.headers.get("Retry-After", "")
    # HTTP also allows a date here, but FaaSMoE sends seconds.
    if seconds.isdecimal():
        return RetryLater(f"{message}; try again in {seconds} s", float(seconds))
    if answer.headers.get("x-should-retry") == "false":
        return RetryLater(f"{message}; trying again does not help", None)
    return FaaSMoEError(message)
