"""Thousands of tiny requests, good and bad: a normal request is served meanwhile, and no memory leaks."""

import asyncio
import gc
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from tests.support.api.api_server import (
    ASK,
    COMPLETION,
    IDLE,
    ApiClient,
    add_tenant,
    completion,
    eventually,
    serving,
)
from tests.support.models.tiny_chat_model import CONTEXT_LENGTH, EXPERTS

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
REQUESTS = 18_000
CONNECTIONS = 64
WARM_UP = 2_000
MAX_GROWTH = 24 << 20
"""Allowed growth of the server's memory in bytes: 1.3 KB per request."""
STREAMED_TOKENS = 200
KINDS: list[tuple[str, str, bytes, int]] = [
    ("POST", COMPLETION, b"", 400),
    ("POST", COMPLETION, b"{", 400),
    ("POST", COMPLETION, b'{"prompt": "a", "max_tokens": "many"}', 400),
    ("POST", COMPLETION, json.dumps({"prompt": [5] * (CONTEXT_LENGTH + 1)}).encode(), 400),
    ("POST", COMPLETION, b'{"prompt": "a", "model": "gpt-4"}', 404),
    ("POST", COMPLETION, b"\xff\xfe", 400),
    ("POST", COMPLETION, b"[" * 2000, 400),
    ("POST", CHAT, b'{"messages": []}', 400),
    ("POST", CHAT, b'{"messages": [{"role": "wizard", "content": "a"}]}', 400),
    ("GET", "/v1/models/gpt-4", b"", 404),
    ("GET", "/nowhere", b"", 404),
    ("DELETE", COMPLETION, b"", 405),
    ("GET", "/v1/models", b"", 200),
    ("GET", "/health", b"", 200),
]
"""Requests, each with its expected status."""
GOOD = json.dumps({"prompt": "a", "max_tokens": 1, "temperature": 0}).encode()
GOOD_STATUSES = {200, 429, 503}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("database") / "faasmoe.db"


@pytest.fixture(scope="module")
def server(chat_partition: Path, database: Path) -> Iterator[ApiClient]:
    """A server with room for fewer concurrent sequences than the flood has."""
    with serving(chat_partition, database, max_queued_per_tenant=16, log_level="error") as client:
        yield client


async def flood(server: ApiClient, key: str, requests: int) -> Counter[tuple[str, int]]:
    """Send requests; returns how often each kind had each status."""
    seen: Counter[tuple[str, int]] = Counter()
    numbers = iter(range(requests))
    connector = aiohttp.TCPConnector(limit=CONNECTIONS)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    async def client(session: aiohttp.ClientSession) -> None:
        for number in numbers:
            method, path, body, status = KINDS[number % len(KINDS)]
            # One request in eight is valid.
            if number % 8 == 0:
                method, path, body, status = "POST", COMPLETION, GOOD, 0
            async with session.request(method, path, data=body) as answer:
                text = await answer.read()
                # A request above the concurrency limit is refused before its body is read.
                as_expected = answer.status in (status, 429)
                kind = "good" if not status else "as expected" if as_expected else path
                seen[kind, answer.status] += 1
                if answer.status >= 400:
                    assert set(json.loads(text)["error"]) == {"message", "type", "param", "code"}

    async with aiohttp.ClientSession(server.url, connector=connector, headers=headers) as session:
        await asyncio.gather(*(client(session) for _ in range(CONNECTIONS)))
    return seen


def test_a_flood_of_requests(
    server: ApiClient,
    database: Path,
    tokenizer: Any,
    expected: Callable[[list[int], int], str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    # pytest keeps log records. A line per request would count as the server's memory.
    caplog.set_level("ERROR", "control_plane")
    flooding = add_tenant(database, "flooding")
    behaved = server.with_key(add_tenant(database, "behaved"))
    text = expected(tokenizer("the cat")["input_ids"], STREAMED_TOKENS)
    asked = {**ASK, "max_tokens": STREAMED_TOKENS, "ignore_eos": True}

    async def both(requests: int) -> tuple[Counter[tuple[str, int]], list[Any]]:
        answers, events = await asyncio.gather(
            flood(server, flooding, requests), asyncio.to_thread(behaved.stream, COMPLETION, **asked)
        )
        return answers, events

    asyncio.run(both(WARM_UP))
    eventually(server.engine, IDLE)
    gc.collect()
    memory = psutil.Process().memory_info().rss
    counts = server.status()["open"]

    seen, events = asyncio.run(both(REQUESTS))
    assert "".join(event["choices"][0]["text"] for event in events) == text
    assert sum(seen.values()) == REQUESTS
    assert {kind for kind, _ in seen} == {"good", "as expected"}, seen
    assert {status for kind, status in seen if kind == "good"} <= GOOD_STATUSES
    assert seen["good", 200] > 0
    eventually(server.engine, IDLE)
    # The autoscaler keeps a connection for each function to the gateway, which is in this process, too.
    kept = 2 * len(EXPERTS)
    eventually(lambda: [name for name, n in server.status()["open"].items() if n > counts[name] + kept], [])
    gc.collect()
    assert psutil.Process().memory_info().rss - memory < MAX_GROWTH
    assert completion(server.with_key(flooding)).status == 200
