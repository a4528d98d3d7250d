"""The invoker with real functions: which way calls take, and what it counts."""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import psutil
import pytest

from control_plane.faas.call import InvocationPolicy
from control_plane.faas.connection import Address
from control_plane.faas.invoking.invoker import Invoker
from functions.contract.messages import Invocation
from tests.conftest import StartFunction
from tests.support.functions.expert_process import ExpertProcess, expert_process
from tests.support.functions.loopback_server import LoopbackServer, gateway, loopback_server
from tests.support.models.tiny_partition import TinyPartition

pytestmark = pytest.mark.usefixtures("either_way")

POLICY = InvocationPolicy(attempt_timeout=20, deadline=30, first_backoff=0.01)


@dataclass
class Site:
    """A gateway, the functions behind it, and an invoker in front of it."""

    tiny: TinyPartition
    routes: dict[str, Address]
    gateway: LoopbackServer
    invoker: Invoker

    def invoke(self, *invocations: tuple[str, Invocation]) -> None:
        """Invoke functions at the same time, and check their answers."""
        results = self.invoker.begin(dict(invocations)).wait()
        assert results.keys() == dict(invocations).keys()
        for name, invocation in invocations:
            self.tiny.check(invocation, results[name].output)


@pytest.fixture(scope="module")
def processes(tiny: TinyPartition) -> Iterator[Mapping[str, ExpertProcess]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(expert_process(tiny.folder, name)) for name in tiny.functions}


@pytest.fixture
def site(tiny: TinyPartition, processes: Mapping[str, ExpertProcess]) -> Iterator[Site]:
    """All functions of the partition; fails if the invoker leaves a socket open."""
    routes = {name: process.address for name, process in processes.items()}
    with loopback_server(gateway(routes)) as server:
        invoker = Invoker(lambda _: server.address, lambda _: False, POLICY)
        site = Site(tiny, routes, server, invoker)
        yield site
        site.invoker.close()
        servers = {(address.host, address.port) for address in (server.address, *routes.values())}
        assert not [c for c in connections() if c.raddr in servers]


def connections() -> list[Any]:
    """All TCP connections of this process."""
    return psutil.Process().net_connections("tcp")


def test_the_first_call_goes_through_the_gateway_and_later_ones_are_direct(site: Site) -> None:
    name = site.tiny.functions[0]
    for seed in range(5):
        site.invoke((name, site.tiny.invocation(name, seed % 3, seed=seed)))
    assert site.gateway.paths == [f"/function/{name}"]
    assert site.invoker.statistics[name].retries == 0


def test_functions_are_invoked_together_and_each_answers_its_own_call(site: Site) -> None:
    for seed in range(3):
        site.invoke(
            *((name, site.tiny.invocation(name, rows=seed + 1, seed=seed)) for name in site.tiny.functions)
        )
    assert sorted(site.gateway.paths) == [f"/function/{name}" for name in site.tiny.functions]


def test_an_empty_list_of_invocations(site: Site) -> None:
    site.invoke()
    assert site.gateway.paths == []


def test_connections_are_reused(site: Site) -> None:
    for name in site.tiny.functions:
        site.invoke((name, site.tiny.invocation(name)))
    assert site.gateway.connections == 1
    name = site.tiny.functions[0]
    address = site.routes[name]
    own_ends = []
    for seed in range(5):
        site.invoke((name, site.tiny.invocation(name, seed=seed)))
        own_ends += [c.laddr for c in connections() if c.raddr == (address.host, address.port)]
    assert len(own_ends) == 5
    assert len(set(own_ends)) == 1


def test_answered_invocations_are_counted(site: Site) -> None:
    first, second = site.tiny.functions[:2]
    invocations = [site.tiny.invocation(first, layer, rows=rows) for layer, rows in ((0, 1), (2, 5), (2, 3))]
    other = site.tiny.invocation(second, rows=2)
    before = time.time()
    site.invoke((first, invocations[0]), (second, other))
    for invocation in invocations[1:]:
        site.invoke((first, invocation))
    statistics = site.invoker.statistics
    counted = statistics[first]
    assert (counted.invocations, counted.rows, counted.cold_starts, counted.retries) == (3, 9, 1, 0)
    assert counted.bytes_sent == sum(len(b"".join(invocation.encode())) for invocation in invocations)
    assert counted.bytes_received > 9 * 24 * 4
    layers = {layer: (asked.invocations, asked.rows) for layer, asked in counted.layers.items()}
    assert layers == {0: (1, 1), 2: (2, 8)}
    assert before <= counted.last_call <= time.time()
    report = counted.residency.last
    assert report.resident_bytes == report.resident_experts * site.tiny.manifest.expert_nbytes > 0
    usage = site.invoker.usage
    assert (usage.invocations, usage.cold_starts) == (4, 2)
    assert usage.wire_bytes == sum(s.bytes_sent + s.bytes_received for s in statistics.values())
    assert usage.seconds == pytest.approx(sum(s.seconds for s in statistics.values()))
    assert usage.seconds > 0


def test_a_restarted_function_is_found_and_counted(site: Site, start_function: StartFunction) -> None:
    name = site.tiny.functions[0]
    old = start_function(site.tiny.folder, name)
    site.routes[name] = old.address
    site.invoke((name, site.tiny.invocation(name)))
    old.process.kill()
    old.process.wait()
    site.routes[name] = start_function(site.tiny.folder, name).address
    site.invoke((name, site.tiny.invocation(name, seed=1)))
    counted = site.invoker.statistics[name]
    assert (counted.invocations, counted.cold_starts, counted.retries) == (2, 2, 1)
    assert len(site.gateway.paths) == 2


def test_a_function_is_found_whose_old_address_belongs_to_another_one(
    site: Site, start_function: StartFunction
) -> None:
    mine, others = site.tiny.functions[:2]
    old = start_function(site.tiny.folder, mine)
    site.routes[mine] = old.address
    site.invoke((mine, site.tiny.invocation(mine)))
    old.process.terminate()
    old.process.wait()
    new = start_function(site.tiny.folder, mine)
    site.routes[mine] = new.address
    start_function(site.tiny.folder, others, port=old.address.port)
    site.invoke((mine, site.tiny.invocation(mine, seed=1)))
    assert site.invoker.statistics[mine].retries == 1
    assert len(site.gateway.paths) == 2


def test_invocations_that_nobody_waits_for_are_dropped(site: Site) -> None:
    name = site.tiny.functions[0]
    site.invoke((name, site.tiny.invocation(name)))
    site.invoker.begin({name: site.tiny.invocation(name, rows=9)})
    site.invoke((name, site.tiny.invocation(name, seed=1)))
    site.invoker.begin({name: site.tiny.invocation(name, rows=9)})


def test_the_result_of_a_bf16_batch_is_bf16(
    partitions: Mapping[str, TinyPartition], start_function: StartFunction
) -> None:
    tiny = partitions["bf16"]
    function = start_function(tiny.folder, tiny.functions[0])
    invocation = tiny.invocation(function.name)
    with loopback_server(gateway({function.name: function.address})) as server:
        invoker = Invoker(lambda _: server.address, lambda _: False, POLICY)
        result = invoker.begin({function.name: invocation}).wait()[function.name]
        invoker.close()
    tiny.check(invocation, result.output)


def test_a_loopback_address_from_a_gateway_elsewhere_is_not_called(site: Site) -> None:
    # Linux connects to itself at this address, which does not count as loopback.
    elsewhere = Address("0.0.0.0", site.gateway.address.port)
    invoker = Invoker(lambda _: elsewhere, lambda _: False, POLICY)
    name = site.tiny.functions[0]
    invocation = site.tiny.invocation(name)
    for _ in range(2):
        site.tiny.check(invocation, invoker.begin({name: invocation}).wait()[name].output)
    invoker.close()
    assert site.gateway.paths == [f"/function/{name}"] * 2
