"""The routes under `/system/`, with which faas-cli deploys and inspects functions.

Paths, bodies and status codes are those of
https://github.com/openfaas/faas/blob/master/api-docs/spec.openapi.yml
"""

import asyncio
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from typing import Final, Protocol, TypeVar

from aiohttp import web

from control_plane.errors import ConfigError, FunctionUnavailable
from control_plane.faas.types import (
    DEFAULT_NAMESPACE,
    DeleteFunctionRequest,
    FunctionDeployment,
    ScaleServiceRequest,
    Secret,
    Time,
    to_microseconds,
)
from control_plane.gateway.provider.provider import LocalProvider
from control_plane.gateway.request_body import read_json
from control_plane.validation import convert

MAX_LOG_READERS: Final = 64
NAME_IN_PATH: Final = "{name:[-a-zA-Z_0-9.]+}"


class _Namespaced(Protocol):
    @property
    def namespace(self) -> str: ...


Body = TypeVar("Body", bound=_Namespaced)


@dataclass(frozen=True)
class _LogQuery:
    """What GET `/system/logs` asks of a function's log."""

    since: datetime | None
    tail: int
    """The number of lines; 0 or less for all."""
    follow: bool

    @classmethod
    def parse(cls, query: Mapping[str, str]) -> "_LogQuery":
        since, follow = query.get("since"), query.get("follow", "")
        try:
            return cls(
                convert(to_microseconds(since), Time) if since else None,
                int(query.get("tail") or 0),
                follow.lower() in ("true", "1"),
            )
        except ValueError as error:
            raise web.HTTPUnprocessableEntity(text=f"could not parse the log request: {error}\n") from None


class SystemApi:
    """The handlers of one provider's routes."""

    def __init__(self, provider: LocalProvider) -> None:
        self._provider = provider
        self._log_readers = 0

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/system/functions", self.list_functions),
            web.post("/system/functions", self.deploy),
            web.put("/system/functions", self.update),
            web.delete("/system/functions", self.remove),
            web.get(f"/system/function/{NAME_IN_PATH}", self.describe),
            web.post(f"/system/scale-function/{NAME_IN_PATH}", self.scale),
            web.get("/system/logs", self.logs),
            web.get("/system/secrets", self.list_secrets),
            web.post("/system/secrets", self.create_secret),
            web.put("/system/secrets", self.update_secret),
            web.delete("/system/secrets", self.remove_secret),
            web.get("/system/namespaces", self.list_namespaces),
            web.get("/system/info", self.info),
        ]

    async def list_functions(self, request: web.Request) -> web.Response:
        _check_namespace(request.query.get("namespace", ""))
        functions = [status.to_json() for status in self._provider.describe_all()]
        if not self._provider.behaviour.lists_available:
            for function in functions:
                del function["availableReplicas"]
                function.pop("usage", None)
        return web.json_response(functions)

    async def deploy(self, request: web.Request) -> web.Response:
        await self._provider.deploy(await _read(request, FunctionDeployment.from_json))
        return web.Response(status=202)

    async def update(self, request: web.Request) -> web.Response:
        await self._provider.update(await _read(request, FunctionDeployment.from_json))
        return web.Response(status=200)

    async def remove(self, request: web.Request) -> web.Response:
        body = await _read(request, DeleteFunctionRequest.from_json)
        await self._provider.remove(body.function_name)
        return web.Response(status=200)

    async def describe(self, request: web.Request) -> web.Response:
        _check_namespace(request.query.get("namespace", ""))
        return web.json_response(self._provider.describe(local_name(request)).to_json())

    async def scale(self, request: web.Request) -> web.Response:
        body = await _read(request, ScaleServiceRequest.from_json)
        await self._provider.scale(local_name(request), body.replicas)
        return web.Response(status=202 if self._provider.behaviour.scales_to_zero else 200)

    async def logs(self, request: web.Request) -> web.StreamResponse:
        """Answer with newline-delimited JSON. As in OpenFaaS, `follow` ends at the deadline of a call."""
        _check_namespace(request.query.get("namespace", ""))
        log = self._provider.log(request.query.get("name", ""))
        query = _LogQuery.parse(request.query)
        if self._log_readers >= MAX_LOG_READERS:
            raise FunctionUnavailable(f"{MAX_LOG_READERS} others read logs at the moment")
        messages = log.read(query.since, query.tail, query.follow)
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        self._log_readers += 1
        try:
            # The deadline also ends a reader that takes no more lines.
            async with asyncio.timeout(self._provider.timeouts.call):
                await response.prepare(request)
                async for message in messages:
                    await response.write(json.dumps(message.to_json()).encode() + b"\n")
        except TimeoutError:
            if request.transport is not None and request.transport.get_write_buffer_size():
                request.transport.abort()
        finally:
            self._log_readers -= 1
        return response

    async def list_secrets(self, request: web.Request) -> web.Response:
        _check_namespace(request.query.get("namespace", ""))
        secrets = [Secret(name, DEFAULT_NAMESPACE) for name in self._provider.secrets.names()]
        return web.json_response([secret.to_json() for secret in secrets])

    async def create_secret(self, request: web.Request) -> web.Response:
        secret = await _read(request, Secret.from_json)
        if secret.name in self._provider.secrets:
            return web.Response(status=409, text=f"secret {secret.name} exists already\n")
        self._provider.secrets.write(secret.name, secret.value)
        return web.Response(status=201)

    async def update_secret(self, request: web.Request) -> web.Response:
        secret = await self._read_known_secret(request)
        self._provider.secrets.write(secret.name, secret.value)
        return web.Response(status=200)

    async def remove_secret(self, request: web.Request) -> web.Response:
        secret = await self._read_known_secret(request)
        self._provider.secrets.remove(secret.name)
        return web.Response(status=200)

    async def list_namespaces(self, _: web.Request) -> web.Response:
        return web.json_response([DEFAULT_NAMESPACE])

    async def info(self, _: web.Request) -> web.Response:
        release = {"sha": "", "release": version("faasmoe")}
        behaviour = self._provider.behaviour
        provider = {
            "provider": behaviour.provider,
            "orchestration": behaviour.orchestration,
            "version": release,
        }
        return web.json_response({"provider": provider, "version": release, "arch": platform.machine()})

    async def _read_known_secret(self, request: web.Request) -> Secret:
        secret = await _read(request, Secret.from_json)
        if secret.name not in self._provider.secrets:
            raise web.HTTPNotFound(text=f"unable to find secret: {secret.name}\n")
        return secret


def local_name(request: web.Request) -> str:
    """The name of the function in the path, without the namespace that may follow it after a dot."""
    return request.match_info["name"].removesuffix(f".{DEFAULT_NAMESPACE}")


async def _read(request: web.Request, from_json: Callable[[object], Body]) -> Body:
    try:
        body = from_json(await read_json(request))
    except ValueError as error:
        raise ConfigError(f"cannot read the request: {error}") from None
    _check_namespace(body.namespace)
    return body


def _check_namespace(namespace: str) -> None:
    if namespace not in ("", DEFAULT_NAMESPACE):
        raise ConfigError(f"no namespace {namespace!r} here, only {DEFAULT_NAMESPACE!r}")
