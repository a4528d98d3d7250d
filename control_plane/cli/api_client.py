"""A client of the control plane's own API, for the command line and the demo."""

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
    """A prompt and how to answer it."""

    text: str
    tenant: str
    """Who asks a server that takes requests without keys; with a key, it is the key's."""
    max_tokens: int
    temperature: float = 0.0
    seed: int | None = None
    raw: bool = False
    """Continue the text as it is, rather than answer it as a chat's message."""

    def body(self) -> dict[str, Any]:
        """The request, in OpenAI's terms."""
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
class Answer:
    """The text, and what the client saw and was told of it. Seconds."""

    text: str
    finish_reason: str
    usage: dict[str, Any]
    time_to_first_token: float
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Of the tokens after the first one."""
        tokens = self.usage["completion_tokens"] - 1
        return tokens / max(self.seconds - self.time_to_first_token, 1e-9) if tokens > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """What `faasmoe prompt --json` prints."""
        return {**asdict(self), "tokens_per_second": round(self.tokens_per_second, 2)}


class Client:
    """One control plane. Every call raises a `FaaSMoEError` when it is away or refuses."""

    def __init__(self, url: URL, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._session = session

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: URL, key: str | None = None) -> AsyncIterator["Client"]:
        """A client, with a tenant's key, whose connections are closed at the end of the context."""
        timeout = aiohttp.ClientTimeout(total=None, connect=5, sock_read=300)
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        async with aiohttp.ClientSession(timeout=timeout, headers=headers) as session:
            yield cls(url, session)

    async def ask(self, question: Question, on_text: Callable[[str], None] | None = None) -> Answer:
        """The whole answer; `on_text` gets its pieces as they come."""
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
            raise FaaSMoEError(f"{self._url} ended its answer before it was whole")
        return Answer("".join(pieces), finish_reason, usage, first, time.perf_counter() - started)

    async def status(self) -> dict[str, Any]:
        """The control plane's view of its functions."""
        try:
            async with self._session.get(self._url.join(URL("/status"))) as answer:
                await self._check(answer)
                report = await answer.json()
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise self._away(error) from error
        if not isinstance(report, dict) or not {"engine", "functions", "gateways"} <= report.keys():
            raise FaaSMoEError(f"{self._url} answers as no FaaSMoE control plane does")
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
                            raise FaaSMoEError(f"{self._url} answers as no FaaSMoE control plane does")
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
    """The error that an answer tells, and what can be done about it."""
    if answer.status == 400:
        return BadRequest(message)
    if answer.status == 401:
        return InvalidApiKey(f"{message} (a key is given by --key-file or $FAASMOE_API_KEY)")
    if answer.status not in (429, 503):
        return FaaSMoEError(message)
    seconds = answer.headers.get("Retry-After", "")
    # It may also be a date, but is none where FaaSMoE answers.
    if seconds.isdecimal():
        return RetryLater(f"{message}; try again in {seconds} s", float(seconds))
    if answer.headers.get("x-should-retry") == "false":
        return RetryLater(f"{message}; trying again is no use", None)
    return FaaSMoEError(message)
