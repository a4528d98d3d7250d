"""Functions that hang, compute for long or vanish: how soon they are found, and who waits for them."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import psutil
import pytest

from control_plane.errors import InvocationTimeout
from control_plane.faas.call import InvocationPolicy
from tests.conftest import StartFunction
from tests.support.api.api_server import eventually
from tests.support.functions.invoking import PATIENT, answers, by_path, invocation, invoker_of, never, plain
from tests.support.functions.loopback_server import Call, LoopbackServer, gateway, loopback_server, running
from tests.support.functions.vanishing_network import vanishing_network
from tests.support.models.tiny_partition import TinyPartition

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("either_way")]

IMPATIENT = replace(PATIENT, first_patience=0.1, max_patience=0.2, health_timeout=0.3)


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self) -> float:
        return time.monotonic() - self._began


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    # Its threads go on until one of them has been woken to stop them all.
    eventually(lambda: psutil.Process(pid).status(), psutil.STATUS_STOPPED)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("rows", [1, 40_000])
def test_stopped_functions_are_replaced_together(
    tiny: TinyPartition, start_function: StartFunction, rows: int
) -> None:
    """All functions of a step hang. The larger bodies do not fit the network's buffers."""
    names = tiny.functions[:2]
    old = {name: start_function(tiny.folder, name) for name in names}
    new = {name: start_function(tiny.folder, name) for name in names}
    routes = {name: function.address for name, function in old.items()}
    invocations = {name: tiny.invocation(name) for name in names}
    large = {name: tiny.invocation(name, rows=rows) for name in names}
    with ExitStack() as stack:
        server = stack.enter_context(loopback_server(gateway(routes)))
        invoker = stack.enter_context(invoker_of(server.address, InvocationPolicy()))
        invoker.begin(invocations).wait()
        invoker.begin(invocations).wait()
        assert len(server.paths) == 2
        for function in old.values():
            stack.enter_context(stopped(function.process.pid))
        routes |= {name: function.address for name, function in new.items()}
        clock = Clock()
        results = invoker.begin(large).wait()
        assert clock() < 5
        for name in names:
            assert results[name].output.shape == large[name].hidden_states.shape
            assert invoker.statistics[name].retries == 1


def test_a_slow_function_is_called_once() -> None:
    def slow(call: Call) -> None:
        assert not call.wait_for_hang_up(1.5)
        answers()(call)

    with ExitStack() as stack:
        function = stack.enter_context(loopback_server(slow))
        server = stack.enter_context(loopback_server(never, answers(function.address)))
        invoker = stack.enter_context(invoker_of(server.address, IMPATIENT))
        invoker.begin({"f": invocation()}).wait()
        invoker.begin({"f": invocation()}).wait()
        assert function.paths == ["/"]
        assert 3 <= function.questions <= 12
        assert len(server.paths) == 1
        assert invoker.statistics["f"].retries == 0


def test_a_function_is_not_silent_while_nobody_listens() -> None:
    """The control plane computes for longer than a function may be silent; the function for longer still."""

    def slow(call: Call) -> None:
        assert not call.wait_for_hang_up(0.8)
        answers()(call)

    with ExitStack() as stack:
        function = stack.enter_context(loopback_server(slow))
        server = stack.enter_context(loopback_server(never, answers(function.address)))
        policy = replace(PATIENT, loss_patience=0.05, first_patience=0.5)
        invoker = stack.enter_context(invoker_of(server.address, policy))
        invoker.begin({"f": invocation()}).wait()
        pending = invoker.begin({"f": invocation()})
        time.sleep(0.6)
        pending.wait()
        assert function.questions == 0
        assert len(server.paths) == 1


def test_an_answer_counts_that_arrives_while_the_function_is_asked() -> None:
    """The function is too busy to answer for its health, but not to answer the call."""

    def slow(call: Call) -> None:
        assert not call.wait_for_hang_up(0.3)
        answers()(call)

    with ExitStack() as stack:
        function = stack.enter_context(loopback_server(slow))
        function.healthy = False
        server = stack.enter_context(loopback_server(never, answers(function.address)))
        policy = replace(PATIENT, first_patience=0.1, health_timeout=2.0)
        invoker = stack.enter_context(invoker_of(server.address, policy))
        invoker.begin({"f": invocation()}).wait()
        invoker.begin({"f": invocation()}).wait()
        assert function.questions == 1
        assert len(server.paths) == 1


def test_a_function_that_is_slow_for_ever_is_given_up() -> None:
    with ExitStack() as stack:
        function = stack.enter_context(loopback_server(never))
        server = stack.enter_context(loopback_server(answers(), answers(function.address)))
        policy = replace(IMPATIENT, attempt_timeout=1.0)
        invoker = stack.enter_context(invoker_of(server.address, policy))
        invoker.begin({"f": invocation()}).wait()
        clock = Clock()
        invoker.begin({"f": invocation()}).wait()
        assert 1.0 <= clock() < 3
        assert len(server.paths) == 2


def test_a_failed_call_does_not_wait_for_a_slow_one() -> None:
    """The gateway's second answer for b has arrived before a is ready."""
    repeated: list[float] = []

    def slow(call: Call) -> None:
        assert not call.wait_for_hang_up(2)
        answers()(call)

    def again(call: Call) -> None:
        repeated.append(clock())
        answers()(call)

    with ExitStack() as stack:
        a = stack.enter_context(loopback_server(slow))
        b = stack.enter_context(loopback_server(plain(500)))
        responders = {"a": answers(a.address), "b": answers(b.address)}
        server = stack.enter_context(loopback_server(by_path(responders)))
        invoker = stack.enter_context(invoker_of(server.address))
        invoker.begin({"a": invocation(), "b": invocation()}).wait()
        responders["b"] = again
        clock = Clock()
        invoker.begin({"a": invocation(), "b": invocation()}).wait()
        assert clock() >= 2
        assert len(repeated) == 1
        assert repeated[0] < 1


def test_attempts_through_a_gateway_that_hangs_become_longer() -> None:
    policy = InvocationPolicy(
        attempt_timeout=0.8, deadline=2.2, first_gateway_timeout=0.2, first_backoff=0.001
    )
    with loopback_server(never) as server, invoker_of(server.address, policy) as invoker:
        clock = Clock()
        pending = invoker.begin({"f": invocation()})
        with pytest.raises(InvocationTimeout, match="function f did not answer in time") as raised:
            pending.wait()
        assert raised.value.functions == {"f"}
        assert 2.2 <= clock() < 4
        assert len(server.paths) == 4  # 0.2 + 0.4 + 0.8, and the rest.


def test_a_connection_that_hangs_is_replaced() -> None:
    policy = replace(PATIENT, first_gateway_timeout=0.2)
    with loopback_server(answers(), never) as server, invoker_of(server.address, policy) as invoker:
        invoker.begin({"f": invocation()}).wait()
        assert len(server.paths) == 2


@pytest.mark.parametrize(
    "policy",
    [InvocationPolicy(), InvocationPolicy(first_patience=60.0)],
    ids=["asked for its health", "by TCP alone"],
)
@pytest.mark.parametrize("when", ["before the call", "during the call"])
def test_a_function_that_vanishes_without_a_reset(policy: InvocationPolicy, when: str) -> None:
    """As of a container whose network is removed first. No packet comes back."""
    responders: list[Callable[[Call], None]] = [answers()]
    with vanishing_network() as network, ExitStack() as stack:
        function = stack.enter_context(running(network.inside(make_server)))
        function.otherwise = lambda call: responders[0](call)
        server = stack.enter_context(loopback_server(answers(), answers(function.address)))
        invoker = stack.enter_context(invoker_of(server.address, policy, networks=network.networks))
        for _ in range(2):
            invoker.begin({"f": invocation()}).wait()
        assert (len(server.paths), function.paths) == (1, ["/"])
        responders[0] = never
        clock = Clock()
        if when == "before the call":
            network.vanish()
            pending = invoker.begin({"f": invocation()})
        else:
            pending = invoker.begin({"f": invocation()})
            network.vanish()
        pending.wait()
        assert clock() < 4
        assert len(server.paths) == 2


def test_functions_that_vanish_together_are_found_together() -> None:
    """Each is needed by another step; only the first step waits until it is known that they are gone."""
    names = ["a", "b", "c"]
    with vanishing_network() as network, ExitStack() as stack:
        gone = [stack.enter_context(running(network.inside(make_server))) for _ in names]
        here = [stack.enter_context(loopback_server(answers())) for _ in names]
        for function in gone:
            function.otherwise = answers()
        responders = {name: answers(function.address) for name, function in zip(names, gone, strict=True)}
        server = stack.enter_context(loopback_server(by_path(responders)))
        invoker = stack.enter_context(
            invoker_of(server.address, InvocationPolicy(), networks=network.networks)
        )
        for name in names * 2:
            invoker.begin({name: invocation()}).wait()
        assert len(server.paths) == len(names)
        responders |= {name: answers(function.address) for name, function in zip(names, here, strict=True)}
        network.vanish()
        clock = Clock()
        for name in names:
            invoker.begin({name: invocation()}).wait()
        assert clock() < 1.9
        assert len(server.paths) == 2 * len(names)


def make_server(host: str) -> LoopbackServer:
    return LoopbackServer(never, host=host)
