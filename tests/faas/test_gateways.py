"""What the gateways' lists say about functions that are not there; the tests set the clock."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from control_plane.errors import GatewayError
from control_plane.faas.client import Gateway
from control_plane.faas.gateways import ABSENT_SECONDS, RECENT_SECONDS, Gateways
from tests.support.gateways.echo_gateway import asynchronous
from tests.support.gateways.scaling_gateway import ScalingGateway, scaling_gateway


@dataclass
class Site:
    """Two gateways, and what is known of them."""

    first: ScalingGateway
    second: ScalingGateway
    clients: tuple[Gateway, Gateway]
    gateways: Gateways
    now: float = 1000.0

    def remove(self, name: str) -> None:
        for gateway in (self.first, self.second):
            gateway.replicas.pop(name, None)

    async def list_after(self, seconds: float) -> None:
        self.now += seconds
        await self.gateways.functions()


@asynccontextmanager
async def two_gateways(*names: str) -> AsyncIterator[Site]:
    """A partition of three functions: "a" at the first gateway, "b" at the second, "c" where `names` says."""
    async with scaling_gateway("a") as (first, one), scaling_gateway("b", *names) as (second, two):
        site: Site
        gateways = Gateways([one, two], frozenset("abc"), clock=lambda: site.now)
        site = Site(first, second, (one, two), gateways)
        yield site


@asynchronous
async def test_a_function_is_absent_when_lists_lack_it_for_some_seconds() -> None:
    async with two_gateways() as site:
        assert not site.gateways.is_absent("c")
        await site.list_after(0)
        assert not site.gateways.is_absent("c")
        await site.list_after(ABSENT_SECONDS - 1)
        assert not site.gateways.is_absent("c")
        await site.list_after(1)
        assert site.gateways.is_absent("c")
        assert not site.gateways.is_absent("a")
        # One list is not enough to know it for long.
        site.now += RECENT_SECONDS + 1
        assert not site.gateways.is_absent("c")
        site.second.replicas["c"] = 1
        await site.list_after(0)
        assert not site.gateways.is_absent("c")


@asynchronous
async def test_a_function_that_is_deployed_again_is_not_absent() -> None:
    """faasd removes a function, and creates it again, when it is updated."""
    async with two_gateways("c") as site:
        await site.list_after(0)
        for _ in range(3):
            site.remove("c")
            await site.list_after(ABSENT_SECONDS / 2)
            assert not site.gateways.is_absent("c")
            site.second.replicas["c"] = 1
            await site.list_after(ABSENT_SECONDS / 2)
            assert not site.gateways.is_absent("c")


@asynchronous
async def test_nothing_is_absent_while_a_gateway_does_not_list_its_functions() -> None:
    async with two_gateways() as site:
        site.first.away = True
        for _ in range(10):
            await site.list_after(1)
            assert not site.gateways.is_absent("c")
        assert site.gateways.unlisted() == frozenset()
        site.first.away = False
        # From now on only complete lists count.
        await site.list_after(1)
        await site.list_after(ABSENT_SECONDS - 1)
        assert not site.gateways.is_absent("c")
        await site.list_after(1)
        assert site.gateways.is_absent("c")
        site.first.away = True
        await site.list_after(1)
        assert not site.gateways.is_absent("c")
        assert site.gateways.unlisted() == {"a"}


@asynchronous
async def test_a_gateway_that_was_away_has_lost_what_it_does_not_list_any_more() -> None:
    async with two_gateways("c") as site:
        one, two = site.clients
        await site.list_after(0)
        site.second.away = True
        await site.list_after(1)
        assert site.gateways.has_failed(two)
        assert not site.gateways.has_failed(one)
        assert site.gateways.lost(two) == []
        site.second.away = False
        site.second.replicas.clear()
        await site.list_after(1)
        assert site.gateways.lost(two) == ["b", "c"]
        # They will be deployed again, so they are not absent, however long that takes.
        await site.list_after(2 * ABSENT_SECONDS)
        assert not site.gateways.is_absent("b")
        site.first.replicas["c"] = 1
        site.second.replicas["b"] = 1
        await site.list_after(1)
        assert site.gateways.lost(two) == []


@asynchronous
async def test_a_gateway_that_was_there_all_the_time_has_lost_nothing() -> None:
    async with two_gateways("c") as site:
        await site.list_after(0)
        site.remove("c")
        await site.list_after(1)
        await site.list_after(ABSENT_SECONDS)
        assert site.gateways.lost(site.clients[1]) == []
        assert site.gateways.is_absent("c")
        # Nor does a later failure bring it back.
        site.gateways.failed(site.clients[1])
        await site.list_after(1)
        assert site.gateways.lost(site.clients[1]) == []


@asynchronous
async def test_the_age_of_what_a_list_says() -> None:
    async with two_gateways() as site:
        assert not site.gateways.has_listed_since("a", 0.0)
        before = time.time()
        await site.list_after(0)
        assert site.gateways.has_listed_since("a", before - 1)
        assert not site.gateways.has_listed_since("a", time.time())
        site.first.away = site.second.away = True
        with pytest.raises(GatewayError):
            await site.list_after(0)
        assert not site.gateways.has_listed_since("a", time.time())
