"""Replays against a stub server: requests are sent when they are due, and outcomes are recorded."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from bench.comparison.measuring.replay import Endpoint, PromptTokens, RequestOutcome, replay
from bench.comparison.workload.workload import WorkloadRequest
from bench.support import requests
from control_plane.http import serving
from tests.support.gateways.echo_gateway import asynchronous
from tests.support.paths import DEMO_MODEL


@dataclass
class Site:
    """The stub server. It keeps the requests, and awaits `before` before each answer."""

    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    before: Callable[[dict[str, Any]], Awaitable[None]] | None = None

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        self.keys.append(request.headers.get("Authorization"))
        if self.before:
            await self.before(body)
        if body["user"] == "refused":
            return web.Response(status=429, text="too many")
        answer = web.StreamResponse()
        await answer.prepare(request)
        for _ in range(body["max_tokens"] - (body["user"] == "short")):
            await answer.write(b'data: {"choices": []}\n\n')
        await answer.write(b"data: [DONE]\n\n")
        return answer


@asynccontextmanager
async def replayed(
    workload: list[WorkloadRequest], site: Site | None = None, seed: int = 0
) -> AsyncIterator[tuple[Site, list[RequestOutcome]]]:
    """Replay a workload against the site. Yields the site and the outcomes."""
    site = site or Site()
    app = web.Application()
    app.router.add_post("/v1/completions", site.complete)
    async with serving(app, "127.0.0.1", 0) as url, requests.session() as client:
        endpoints = {
            request.tenant: Endpoint(str(url).rstrip("/"), f"key-{request.tenant}") for request in workload
        }
        yield site, await replay(client, endpoints, workload, PromptTokens(1000), seed)


@asynchronous
async def test_requests_are_sent_when_due_and_their_tokens_are_timed() -> None:
    workload = [
        WorkloadRequest("a", 0.0, 3, prompt_tokens=5),
        WorkloadRequest("b", 0.05, 2, prompt="two two words"),
    ]
    async with replayed(workload) as (site, outcomes):
        pass
    assert [(o.tenant, o.prompt_tokens, len(o.tokens), o.error) for o in outcomes] == [
        ("a", 5, 3, ""),
        ("b", 3, 2, ""),
    ]
    assert [len(body["prompt"]) for body in site.asked] == [5, 3]
    assert site.asked[1]["prompt"][0] == site.asked[1]["prompt"][1] != site.asked[1]["prompt"][2]
    assert site.keys == ["Bearer key-a", "Bearer key-b"]
    first, second = outcomes
    assert second.sent >= second.arrival == pytest.approx(0.05, abs=0.01)
    assert first.sent <= first.tokens[0] <= first.tokens[-1] <= first.ended
    assert len(first.gaps) == 2


@asynchronous
async def test_a_late_answer_delays_nobody() -> None:
    site, both = Site(), asyncio.Event()

    async def before(body: dict[str, Any]) -> None:
        if len(site.asked) == 2:
            both.set()
        await both.wait()

    site.before = before
    async with replayed(
        [WorkloadRequest("a", 0.0, 1, prompt_tokens=1), WorkloadRequest("a", 0.02, 1, prompt_tokens=1)], site
    ) as (_, outcomes):
        assert [outcome.error for outcome in outcomes] == ["", ""]


@asynchronous
async def test_a_round_waits_for_the_one_before() -> None:
    site, ended = Site(), []

    async def before(body: dict[str, Any]) -> None:
        if body["max_tokens"] == 1:
            await asyncio.sleep(0.05)
            ended.append(body)
        else:
            assert len(ended) == 2

    site.before = before
    workload = [
        WorkloadRequest("a", 0.0, 1, prompt_tokens=1),
        WorkloadRequest("b", 0.0, 1, prompt_tokens=1),
        WorkloadRequest("a", 0.0, 2, prompt_tokens=1, round=1),
    ]
    async with replayed(workload, site) as (_, outcomes):
        assert [outcome.error for outcome in outcomes] == ["", "", ""]
        assert outcomes[2].arrival >= max(outcome.ended for outcome in outcomes[:2])


@asynchronous
async def test_a_failure_is_recorded_and_the_others_continue() -> None:
    workload = [WorkloadRequest(name, 0.0, 3, prompt_tokens=1) for name in ("refused", "short", "good")]
    async with replayed(workload) as (_, outcomes):
        refused, short, good = outcomes
    assert "429: too many" in refused.error
    assert refused.time_to_first_token is None
    assert "2 of 3 tokens" in short.error
    assert (good.error, len(good.tokens)) == ("", 3)


@asynchronous
async def test_a_seed_determines_the_prompts() -> None:
    async def prompts(seed: int) -> str:
        async with replayed([WorkloadRequest("a", 0.0, 1, prompt_tokens=9)], seed=seed) as (site, _):
            return json.dumps(site.asked[0]["prompt"])

    assert await prompts(1) == await prompts(1) != await prompts(2)


def test_a_models_own_tokenizer_is_used() -> None:
    request = WorkloadRequest("a", 0.0, 1, prompt="In the beginning")
    ids = PromptTokens.of_model(DEMO_MODEL, 4096).of(request, seed=0)
    tokenizer = PromptTokens.of_model(DEMO_MODEL, 4096).tokenizer
    assert tokenizer is not None
    assert tokenizer.decode(ids) == "In the beginning"
