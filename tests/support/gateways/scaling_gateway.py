"""A gateway on loopback without real functions: it only stores their numbers of replicas, or fails."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field

from aiohttp import web

from control_plane.faas.client import Gateway
from control_plane.http import serving
from functions.contract.messages import ResidencyReport


@dataclass
class ScalingGateway:
    """Records the requests in order, and answers them from the functions' state."""

    replicas: dict[str, int]
    refuses_zero: bool = False
    clamps: bool = False
    """Whether it answers as faasd's does: 200 to a scale to zero, without effect; no `availableReplicas`."""
    calls: Counter[str] = field(default_factory=Counter)
    """The invocations of each function."""
    asked: list[tuple[str, ...]] = field(default_factory=list)
    """("scale", name, replicas), ("limit", name, bytes), ("release", name) and ("invoke", name, body)."""
    listings: int = 0
    away: bool = False
    """Whether there is no provider behind the gateway: it answers 404, as faasd's does."""
    failing: set[str] = field(default_factory=set)
    """Functions that answer every request with an error."""
    hangs: asyncio.Event | None = None
    """All but scale requests wait for this event."""
    on_scale: Callable[[str], None] = lambda name: None
    released: asyncio.Event = field(default_factory=asyncio.Event)
    """Scale requests wait until this event is set."""

    def of(self, kind: str) -> list[tuple[str, ...]]:
        """The recorded requests of one kind."""
        return [asked for asked in self.asked if asked[0] == kind]

    def app(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [
                web.get("/system/functions", self._list),
                web.post("/system/scale-function/{name}", self._scale),
                web.post("/function/{name}", self._invoke),
                web.put("/function/{name}/_/residency", self._limit),
                web.delete("/function/{name}/_/residency", self._release),
            ]
        )
        return app

    async def _list(self, _: web.Request) -> web.Response:
        self.listings += 1
        if self.away:
            return web.Response(status=404, text="not found\n")
        if self.hangs:
            await self.hangs.wait()
        return web.json_response([self._status(name) for name in self.replicas])

    def _status(self, name: str) -> dict[str, object]:
        replicas = self.replicas[name]
        counts = {"replicas": replicas, "invocationCount": self.calls[name]}
        available = {} if self.clamps else {"availableReplicas": replicas}
        return {"name": name, "image": "i", **counts, **available}

    async def _invoke(self, request: web.Request) -> web.Response:
        name, body = request.match_info["name"], await request.text()
        self.asked.append(("invoke", name, body))
        self.calls[name] += 1
        if self.hangs:
            await self.hangs.wait()
        return web.Response(status=500 if name in self.failing else 200)

    async def _scale(self, request: web.Request) -> web.Response:
        name, replicas = request.match_info["name"], (await request.json())["replicas"]
        self.asked.append(("scale", name, str(replicas)))
        self.on_scale(name)
        await self.released.wait()
        if not replicas and self.refuses_zero:
            return web.Response(status=400, text="scaling to zero is not part of this edition\n")
        self.replicas[name] = max(replicas, 1) if self.clamps else replicas
        return web.Response(status=200)

    async def _limit(self, request: web.Request) -> web.Response:
        limit = json.loads(await request.read())["limit_bytes"]
        self.asked.append(("limit", request.match_info["name"], str(limit)))
        return await self._report(request, ResidencyReport(limit_bytes=limit))

    async def _release(self, request: web.Request) -> web.Response:
        self.asked.append(("release", request.match_info["name"]))
        return await self._report(request, ResidencyReport(evicted_for_idleness=3))

    async def _report(self, request: web.Request, report: ResidencyReport) -> web.Response:
        name = request.match_info["name"]
        if self.hangs:
            await self.hangs.wait()
        if name in self.failing or not self.replicas[name]:
            return web.Response(status=503, text="not running\n")
        return web.json_response(asdict(report))


@asynccontextmanager
async def scaling_gateway(
    *names: str, refuses_zero: bool = False
) -> AsyncIterator[tuple[ScalingGateway, Gateway]]:
    """Yields a gateway whose functions all have one replica, and a client of it."""
    site = ScalingGateway(dict.fromkeys(names, 1), refuses_zero)
    site.released.set()
    async with serving(site.app(), "127.0.0.1", 0) as url, Gateway.connect(url, None) as gateway:
        yield site, gateway
