"""Deploys change what differs and leave the rest; the gateways here only store deployments."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from aiohttp.typedefs import Handler

from control_plane.deployment.deploy import Change, deploy_all
from control_plane.errors import ConfigError, GatewayError
from control_plane.faas import client
from control_plane.faas.client import Gateway
from control_plane.http import serving
from functions.contract.secret import OPEN_VARIABLE, SECRET_NAME, FunctionSecret
from tests.support.models.tiny_partition import TinyPartition


@dataclass
class StubGateway:
    """A gateway that stores functions without running them, and fails on request."""

    provider: str = "faasd"
    functions: dict[str, dict[str, Any]] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    """The number of deploys and removals that will fail, by function."""
    loses: bool = False
    """Whether a failed update removes the function, as on faasd."""
    away: bool = False
    """Whether there is no provider behind the gateway: it answers 404."""
    changes: list[tuple[str, str]] = field(default_factory=list)

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._without_provider])
        app.add_routes(
            [
                web.get("/system/info", self._info),
                web.get("/system/functions", self._list),
                web.post("/system/functions", self._write),
                web.put("/system/functions", self._write),
                web.delete("/system/functions", self._remove),
                web.post("/system/secrets", self._write_secret),
                web.put("/system/secrets", self._write_secret),
            ]
        )
        return app

    @web.middleware
    async def _without_provider(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        return web.Response(status=404, text="not found\n") if self.away else await handler(request)

    async def _info(self, _: web.Request) -> web.Response:
        return web.json_response({"provider": {"provider": self.provider}, "arch": "x86_64"})

    async def _list(self, _: web.Request) -> web.Response:
        return web.json_response(
            [{**body, "name": name, "replicas": 1} for name, body in self.functions.items()]
        )

    async def _write(self, request: web.Request) -> web.Response:
        body = await request.json()
        name = body.pop("service")
        if request.method == "PUT" and name not in self.functions:
            return web.Response(status=404, text="not found\n")
        if request.method == "POST" and name in self.functions:
            return web.Response(status=400, text="the function exists already\n")
        if self.failures.get(name, 0):
            self.failures[name] -= 1
            if self.loses:
                self.functions.pop(name, None)
            return web.Response(status=500, text="out of luck\n")
        self.functions[name] = body
        self.changes.append((request.method, name))
        return web.Response(status=202)

    async def _write_secret(self, request: web.Request) -> web.Response:
        body = await request.json()
        if request.method == "PUT" and body["name"] not in self.secrets:
            return web.Response(status=404, text="not found\n")
        self.secrets[body["name"]] = body["value"]
        return web.Response(status=202)

    async def _remove(self, request: web.Request) -> web.Response:
        name = (await request.json())["functionName"]
        if self.failures.get(name, 0):
            self.failures[name] -= 1
            return web.Response(status=500, text="the container has not stopped\n")
        self.changes.append(("DELETE", name))
        return web.Response(status=200 if self.functions.pop(name, None) else 404)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PAUSE_SECONDS", 0.0)


def deploy(tiny: TinyPartition, *stubs: StubGateway, prefix: str = "", **options: Any) -> list[Change]:
    async def run() -> list[Change]:
        async with AsyncExitStack() as stack:
            gateways = []
            for stub in stubs:
                url = await stack.enter_async_context(serving(stub.app(), "127.0.0.1", 0))
                gateways.append(await stack.enter_async_context(Gateway.connect(url, None)))
            return [change async for change in deploy_all(tiny.manifest, gateways, prefix, **options)]

    return asyncio.run(run())


def done(changes: list[Change]) -> list[str]:
    return [change.done for change in changes]


def test_only_changed_functions_are_deployed(tiny: TinyPartition) -> None:
    stub = StubGateway()
    assert done(deploy(tiny, stub)) == ["created"] * 3
    assert done(deploy(tiny, stub)) == ["unchanged"] * 3
    assert done(deploy(tiny, stub, prefix="registry/")) == ["updated"] * 3
    stub.functions.pop(tiny.functions[1])
    assert done(deploy(tiny, stub, prefix="registry/")) == ["unchanged", "created", "unchanged"]


def test_fields_added_by_a_provider_are_not_a_change(tiny: TinyPartition) -> None:
    stub = StubGateway()
    deploy(tiny, stub)
    for body in stub.functions.values():
        body["labels"]["faas_function"] = "yes"
        body["annotations"]["prometheus.io.scrape"] = "false"
        del body["limits"]
    assert done(deploy(tiny, stub)) == ["unchanged"] * 3


def test_a_failed_deploy_is_retried(tiny: TinyPartition) -> None:
    stub = StubGateway(loses=True)
    deploy(tiny, stub)
    stub.failures = {tiny.functions[1]: 2}
    assert done(deploy(tiny, stub, prefix="registry/")) == ["updated"] * 3
    assert {body["image"].split("/")[0] for body in stub.functions.values()} == {"registry"}


@pytest.mark.parametrize("roll_back", [False, True])
def test_a_deploy_that_keeps_failing_raises_and_is_rolled_back_on_request(
    tiny: TinyPartition, roll_back: bool
) -> None:
    stub = StubGateway()
    deploy(tiny, stub)
    del stub.functions[tiny.functions[1]]
    before = {name: body["image"] for name, body in stub.functions.items()}
    stub.failures = {tiny.functions[2]: 99}
    with pytest.raises(GatewayError, match="out of luck"):
        deploy(tiny, stub, prefix="registry/", roll_back=roll_back)
    after = {name: body["image"] for name, body in stub.functions.items()}
    assert (after == before) == roll_back
    assert len(after) == (2 if roll_back else 3)


def test_a_function_that_a_failed_update_removed_is_restored(tiny: TinyPartition) -> None:
    stub = StubGateway(loses=True)
    deploy(tiny, stub)
    # All attempts at the update fail, and the first one at the rollback.
    stub.failures = {tiny.functions[1]: client.ATTEMPTS + 1}
    with pytest.raises(GatewayError, match="out of luck"):
        deploy(tiny, stub, prefix="registry/", roll_back=True)
    assert set(stub.functions) == set(tiny.functions)
    assert not any(body["image"].startswith("registry/") for body in stub.functions.values())


def test_pruning_removes_only_this_models_old_functions(tiny: TinyPartition) -> None:
    stub = StubGateway()
    deploy(tiny, stub)
    ours = stub.functions[tiny.functions[0]]
    strangers = {"tiny-l00-02-e09-09": {"image": "i"}, "other-l00-02-e00-01": ours, "figlet": {"image": "i"}}
    stub.functions |= {"tiny-l00-00-e00-04": ours, **strangers}
    assert done(deploy(tiny, stub)) == ["unchanged"] * 3
    assert done(deploy(tiny, stub, prune=True)) == ["unchanged"] * 3 + ["removed"]
    assert set(stub.functions) == {*tiny.functions, *strangers}


def test_a_removal_that_got_500_is_tried_again(tiny: TinyPartition) -> None:
    """faasd cannot remove a container that is just starting."""
    stub = StubGateway()
    deploy(tiny, stub)
    stub.functions["tiny-l00-00-e00-04"] = stub.functions[tiny.functions[0]]
    stub.failures = {"tiny-l00-00-e00-04": 2}
    assert done(deploy(tiny, stub, prune=True)) == ["unchanged"] * 3 + ["removed"]
    assert set(stub.functions) == set(tiny.functions)


def test_no_change_is_made_beyond_the_community_editions_limit(tiny: TinyPartition) -> None:
    others = {f"f{number}": {"image": "i"} for number in range(13)}
    stub = StubGateway("faasd-ce", dict(others))
    with pytest.raises(ConfigError, match=r"no room for 3 functions.*--max-functions 2"):
        deploy(tiny, stub)
    assert stub.changes == []
    stub.functions.popitem()
    assert done(deploy(tiny, stub)) == ["created"] * 3


def test_old_functions_are_removed_first_if_there_is_no_room(tiny: TinyPartition) -> None:
    stub = StubGateway("faasd-ce")
    deploy(tiny, stub)
    ours = stub.functions.pop(tiny.functions[0])
    stub.functions |= {f"tiny-l00-00-e{number:02}-{number:02}": ours for number in range(13)}
    changes = deploy(tiny, stub, prune=True)
    assert done(changes)[:13] == ["removed"] * 13
    assert set(stub.functions) == set(tiny.functions)


def test_several_gateways_share_the_functions_and_keep_them(tiny: TinyPartition) -> None:
    stubs = StubGateway(), StubGateway()
    changes = deploy(tiny, *stubs)
    assert done(changes) == ["created"] * 3
    assert len({change.gateway for change in changes}) == 2
    assert stubs[0].functions.keys() | stubs[1].functions.keys() == set(tiny.functions)
    assert not stubs[0].functions.keys() & stubs[1].functions.keys()
    assert done(deploy(tiny, *stubs)) == ["unchanged"] * 3
    stray = next(iter(stubs[0].functions))
    stubs[1].functions[stray] = stubs[0].functions[stray]
    assert done(deploy(tiny, *stubs, prune=True)).count("removed") == 1
    assert stray not in stubs[1].functions


def test_gateways_store_the_secret_that_functions_need(tiny: TinyPartition) -> None:
    stubs = StubGateway(), StubGateway()
    for value in ("the first secret of all", "the second secret of all"):
        deploy(tiny, *stubs, secret=FunctionSecret(value))
        assert [stub.secrets for stub in stubs] == [{SECRET_NAME: value}] * 2
    deployed = [body for stub in stubs for body in stub.functions.values()]
    assert [body["secrets"] for body in deployed] == [[SECRET_NAME]] * len(tiny.functions)
    assert not any(OPEN_VARIABLE in body["envVars"] for body in deployed)


def test_functions_are_open_only_if_that_is_asked_for(tiny: TinyPartition) -> None:
    stub = StubGateway()
    deploy(tiny, stub)
    assert not any(OPEN_VARIABLE in body["envVars"] for body in stub.functions.values())
    deploy(tiny, stub, open_to_all=True)
    assert all(body["envVars"][OPEN_VARIABLE] == "1" for body in stub.functions.values())
    assert not any("secrets" in body for body in stub.functions.values())
