"""Calls that begin in C: what is plain ends there, and Python takes over whatever is not."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from threading import Event, Thread

import numpy as np
import pytest

from control_plane.errors import FunctionUnavailable
from control_plane.faas.invoking.invoker import Invoker
from control_plane.faas.wire import plain_calls
from functions.contract.messages import InvocationResult, ResidencyReport
from functions.contract.safetensors_codec import CONTENT_TYPE
from functions.http.messages import FunctionResponse
from tests.support.api.api_server import eventually
from tests.support.functions.invoking import (
    PATIENT,
    RESULT,
    answers,
    by_path,
    invocation,
    invoker_of,
    never,
    plain,
)
from tests.support.functions.loopback_server import Call, LoopbackServer, Responder, loopback_server

pytestmark = pytest.mark.usefixtures("either_way")

PLAIN = replace(RESULT, output=np.ones((3, 24), np.float32), seconds=1e-6)


def encoded(result: InvocationResult, status: int = 200) -> bytes:
    response = FunctionResponse(status, result.encode(), CONTENT_TYPE)
    return b"".join(response.encode(keep_alive=True))


def sends(result: InvocationResult = PLAIN) -> Responder:
    """Answers in the form of a function."""
    data = encoded(result)
    return lambda call: call.send(data)


def pieces(call: Call) -> None:
    data = encoded(PLAIN)
    for start in range(0, len(data), 100):
        call.wfile.write(data[start : start + 100])
        time.sleep(0.001)


def late(call: Call) -> None:
    """Begins in time to be read in C, and ends when Python has taken over."""
    data = encoded(PLAIN)
    call.wfile.write(data[:400])
    assert not call.wait_for_hang_up(PATIENT.loss_patience + 0.1)
    call.wfile.write(data[400:])


@contextmanager
def known(function: LoopbackServer) -> Iterator[Invoker]:
    """An invoker that knows the address of the function f, and has an idle connection to it."""
    with ExitStack() as stack:
        server = stack.enter_context(loopback_server(answers(), answers(function.address)))
        invoker = stack.enter_context(invoker_of(server.address))
        for _ in range(2):
            invoker.begin({"f": invocation()}).wait()
        yield invoker


@pytest.mark.parametrize("answer", [sends(), pieces, late], ids=["at once", "in pieces", "late"])
def test_a_function_answers_on_the_connection_that_is_open(answer: Responder) -> None:
    with loopback_server(answer, sends()) as function, known(function) as invoker:
        counted = invoker.statistics["f"]
        before = counted.bytes_received
        result = invoker.begin({"f": invocation()}).wait()["f"]
        np.testing.assert_array_equal(result.output, PLAIN.output)
        assert (result.instance, result.seconds) == (PLAIN.instance, PLAIN.seconds)
        assert function.connections == 1
        assert (counted.invocations, counted.rows, counted.retries) == (3, 9, 0)
        assert counted.bytes_received - before == sum(map(len, PLAIN.encode()))


def test_a_report_counts_and_stays_until_the_next_one() -> None:
    report = ResidencyReport(read_bytes=9, resident_experts=2)
    with (
        loopback_server(sends(), sends(), sends(replace(PLAIN, residency=report))) as function,
        known(function) as invoker,
    ):
        for _ in range(2):
            invoker.begin({"f": invocation()}).wait()
            assert invoker.statistics["f"].residency.last == report
        invoker.begin({"f": invocation()}).wait()
        assert function.connections == 1


def test_a_limit_is_sent_until_the_function_has_reported_it() -> None:
    bodies: list[bytes] = []

    def answer(call: Call) -> None:
        bodies.append(call.body)
        limit = 5 if len(bodies) > 2 else 0
        sends(replace(PLAIN, residency=ResidencyReport(limit_bytes=limit)))(call)

    with loopback_server(answer) as function, known(function) as invoker:
        for _ in range(3):
            invoker.begin({"f": replace(invocation(), resident_limit=5)}).wait()
        stated = [b'"resident_limit":"5"' in body for body in bodies]
        assert stated == [False, True, True, not plain_calls.are_compiled()]


def test_other_calls_of_the_layer_are_answered_too() -> None:
    """One function is plain, one refuses once, one is slow, and one has never been called."""
    names = ("plain", "refusing", "slow", "new")
    with ExitStack() as stack:
        functions = {
            "plain": stack.enter_context(loopback_server(sends())),
            "refusing": stack.enter_context(loopback_server(plain(503, b"{}"), sends())),
            "slow": stack.enter_context(loopback_server(late, sends())),
        }
        routes = {name: answers(function.address) for name, function in functions.items()}
        server = stack.enter_context(loopback_server(by_path({**routes, "new": answers()})))
        invoker = stack.enter_context(invoker_of(server.address))
        for _ in range(2):
            invoker.begin({name: invocation() for name in functions}).wait()
        results = invoker.begin({name: invocation() for name in names}).wait()
        assert list(results) == list(names)
        assert [invoker.statistics[name].retries for name in names] == [0, 1, 0, 0]
        assert [len(function.paths) for function in functions.values()] == [2, 2, 2]


@pytest.mark.parametrize("length", [0, 50, 300, len(encoded(PLAIN)) - 1])
def test_a_function_that_breaks_off_is_called_again_through_the_gateway(length: int) -> None:
    def breaks_off(call: Call) -> None:
        call.send_and_hang_up(encoded(PLAIN)[:length])

    with loopback_server(breaks_off, sends()) as function, known(function) as invoker:
        result = invoker.begin({"f": invocation()}).wait()["f"]
        assert result.instance == RESULT.instance
        assert invoker.statistics["f"].retries == 1
        assert len(function.paths) == 2


def test_a_connection_that_was_closed_while_idle_costs_no_attempt() -> None:
    def last(call: Call) -> None:
        sends()(call)
        call.close_connection = True

    with loopback_server(sends(), last) as function, known(function) as invoker:
        eventually(lambda: function.closed, 1)
        invoker.begin({"f": invocation()}).wait()
        assert function.connections == 2
        assert invoker.statistics["f"].retries == 0


def test_a_large_request_is_sent_whole() -> None:
    bodies: list[bytes] = []
    rows = 200_000
    large = replace(invocation(rows), hidden_states=np.random.default_rng(0).random((rows, 24), np.float32))
    output = np.ones((rows, 24), np.float32)

    def slow_reader(call: Call) -> None:
        bodies.append(call.body)
        sends(replace(PLAIN, output=output))(call)

    with loopback_server(slow_reader, sends()) as function, known(function) as invoker:
        result = invoker.begin({"f": large}).wait()["f"]
        np.testing.assert_array_equal(result.output, output)
        assert bodies == [b"".join(large.encode())]


def test_a_wait_is_aborted_from_another_thread() -> None:
    waiting = Event()

    def silent(call: Call) -> None:
        waiting.set()
        never(call)

    with loopback_server(silent, sends()) as function, known(function) as invoker:

        def abort() -> None:
            waiting.wait(20)
            invoker.abort()

        aborting = Thread(target=abort)
        aborting.start()
        pending = invoker.begin({"f": invocation()})
        began = time.monotonic()
        with pytest.raises(FunctionUnavailable, match="aborted"):
            pending.wait()
        assert time.monotonic() - began < 5
        aborting.join()


def test_a_pending_call_that_nobody_waits_for_does_not_answer_the_next() -> None:
    ones, twos = PLAIN, replace(PLAIN, output=np.full((3, 24), 2, np.float32))
    with loopback_server(sends(twos), sends(), sends(ones)) as function, known(function) as invoker:
        invoker.begin({"f": invocation()})
        result = invoker.begin({"f": invocation()}).wait()["f"]
        np.testing.assert_array_equal(result.output, twos.output)
