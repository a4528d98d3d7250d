"""A client of a gateway with echo functions: the requests of faas-cli and of callers."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from control_plane.gateway.provider.provider import LocalProvider

IMAGE = "faasmoe/expert:test"


def deployment(
    name: str = "echo", *, labels: dict[str, str] | None = None, secrets: list[str] | None = None, **env: str
) -> dict[str, Any]:
    """The body that faas-cli sends to deploy a function, with null for fields that a stack file omits."""
    return {
        "service": name,
        "image": IMAGE,
        "envVars": {"FAASMOE_FUNCTION": "block-0", **env},
        "constraints": None,
        "secrets": secrets,
        "labels": labels,
        "annotations": {"topic": "echoes"},
    }


@dataclass(frozen=True)
class EchoClient:
    """Requests to a gateway; all except `deploy` concern the function `echo`."""

    http: aiohttp.ClientSession
    own_provider: LocalProvider | None = None

    @property
    def provider(self) -> LocalProvider:
        """The gateway's provider, if the gateway runs in this process."""
        assert self.own_provider is not None
        return self.own_provider

    async def deploy(self, body: dict[str, Any]) -> int:
        """Update a function, or create it if it does not exist, like faas-cli; returns the status."""
        async with self.http.put("/system/functions", json=body) as answer:
            if answer.status != 404:
                return answer.status
        async with self.http.post("/system/functions", json=body) as answer:
            return answer.status

    async def describe(self) -> dict[str, Any]:
        async with self.http.get("/system/function/echo", params={"usage": "1"}) as answer:
            status: dict[str, Any] = await answer.json()
            return status

    async def scale(self, replicas: int) -> int:
        body = {"serviceName": "echo", "replicas": replicas}
        async with self.http.post("/system/scale-function/echo", json=body) as answer:
            return answer.status

    async def remove(self) -> int:
        async with self.http.delete("/system/functions", json={"functionName": "echo"}) as answer:
            return answer.status

    async def echo(self, body: bytes = b"hello") -> tuple[int, bytes]:
        async with self.http.post("/function/echo", data=body) as answer:
            return answer.status, await answer.read()

    async def ask_process(self) -> dict[str, Any]:
        """The process that answered, and the request that it received."""
        async with self.http.get("/function/echo/process") as answer:
            seen: dict[str, Any] = await answer.json()
            return seen

    async def log_lines(self, **query: str) -> list[str]:
        async with self.http.get("/system/logs", params={"name": "echo", **query}) as answer:
            assert answer.content_type == "application/x-ndjson"
            return [json.loads(line)["text"] async for line in answer.content]

    async def wait_for_log_line(self, text: str) -> None:
        async with self.http.get("/system/logs", params={"name": "echo", "follow": "true"}) as answer:
            async for line in answer.content:
                if json.loads(line)["text"] == text:
                    return

    @asynccontextmanager
    async def held_call(
        self, pipe: Path, method: str = "GET"
    ) -> AsyncIterator[asyncio.Task[tuple[int, str]]]:
        """A call that has reached the function, and is answered at the end of the context."""

        async def call() -> tuple[int, str]:
            path, query = "/function/echo/hold", {"pipe": str(pipe)}
            async with self.http.request(method, path, params=query) as answer:
                return answer.status, await answer.text()

        os.mkfifo(pipe)
        task = asyncio.create_task(call())
        # Opening the pipe blocks until the function opens its other end.
        with await asyncio.to_thread(pipe.open, "wb"):
            yield task
