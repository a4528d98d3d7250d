"""The invoker when a function, the gateway or the network fails."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Event

import numpy as np
import pytest

from control_plane.errors import (
    FunctionNotFound,
    FunctionUnavailable,
    GatewayError,
    InvocationTimeout,
    ProtocolError,
)
from control_plane.faas.call import InvocationPolicy
from control_plane.faas.connection import Address
from control_plane.faas.invoking.invoker import Invoker
from functions.contract.messages import Invocation, InvocationResult
from functions.http.messages import FunctionResponse
from tests.support.functions.expert_process import ExpertProcess
from tests.support.functions.loopback_server import Call, Responder, loopback_server
from tests.support.models.tiny_partition import TinyPartition

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("either_way")]


class TwoAttempts(InvocationPolicy):
    """A policy of two attempts: the second follows at once, and the deadline forbids a third."""

    def backoff(self, attempt: int) -> float:
        return 0.0 if attempt == 1 else self.deadline


PATIENT = InvocationPolicy(attempt_timeout=20, deadline=30, first_backoff=0.01)
RESULT = InvocationResult(np.zeros((3, 24), np.float32), "an instance", "127.0.0.1:9", 0.0, 0)


def body_of(result: InvocationResult) -> bytes:
    return b"".join(result.encode())


def status(number: int, code: str) -> Responder:
    error = b"".join(FunctionResponse.error(number, code, "no").body)
    return lambda call: call.reply(number, error)


def plain(number: int, body: bytes) -> Responder:
    return lambda call: call.reply(number, body)


def sends(data: bytes) -> Responder:
    return lambda call: call.send_and_hang_up(data)


def never(call: Call) -> None:
    call.wait_for_hang_up()


def trickle(call: Call) -> None:
    """Send a good answer, so slowly that it would take minutes."""
    call.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n")
    while not call.wait_for_hang_up(0.02):
        call.wfile.write(b".")


HALF = b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\nhalf"

RETRIED: dict[str, tuple[Responder, type[GatewayError]]] = {
    "hangs up": (sends(b""), FunctionUnavailable),
    "hangs up in the middle": (sends(HALF), FunctionUnavailable),
    "speaks no HTTP": (sends(b"SSH-2.0-OpenSSH_9.6\r\n"), FunctionUnavailable),
    "switches protocols": (
        sends(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"),
        FunctionUnavailable,
    ),
    "is too busy": (status(429, "too_many_requests"), FunctionUnavailable),
    "starts": (status(503, "starting"), FunctionUnavailable),
    "has a damaged expert": (status(500, "damaged"), FunctionUnavailable),
    "crashes": (plain(500, b"oops"), FunctionUnavailable),
    "crashes in brackets": (plain(502, b"[" * 100_000), FunctionUnavailable),
    "times out behind the gateway": (plain(504, b""), FunctionUnavailable),
    "has just ended behind faasd": (plain(405, b""), FunctionUnavailable),
    "answers garbage": (plain(200, b"garbage"), ProtocolError),
    "answers nothing": (plain(200, b""), ProtocolError),
    "answers too few rows": (plain(200, body_of(replace(RESULT, output=RESULT.output[1:]))), ProtocolError),
    "answers in bf16": (plain(200, body_of(replace(RESULT, output=np.zeros((3, 24), "<u2")))), ProtocolError),
    "never answers": (never, InvocationTimeout),
    "answers too slowly": (trickle, InvocationTimeout),
}
FINAL: dict[str, tuple[Responder, type[GatewayError]]] = {
    "is not deployed": (plain(404, b"error finding function"), FunctionNotFound),
    "has not the expert": (status(404, "unknown_expert"), ProtocolError),
    "has no such method": (status(405, "method_not_allowed"), ProtocolError),
    "has another model": (status(409, "wrong_model"), ProtocolError),
    "refuses the invocation": (status(400, "bad_request"), ProtocolError),
    "finds it too large": (status(413, "too_large"), ProtocolError),
}


@contextmanager
def invoker_of(gateway: Address, policy: InvocationPolicy = PATIENT) -> Iterator[Invoker]:
    invoker = Invoker(lambda _: gateway, lambda _: True, policy)
    try:
        yield invoker
    finally:
        invoker.close()


@dataclass(frozen=True)
class Target:
    """A function to invoke, with its invocation and the expected answer."""

    name: str
    invocation: Invocation
    tiny: TinyPartition
    good: Responder
    """Answers a call as the function does."""

    def invoke(self, invoker: Invoker) -> InvocationResult:
        return invoker.begin({self.name: self.invocation}).wait()[self.name]

    def check(self, invoker: Invoker) -> None:
        self.tiny.check(self.invocation, self.invoke(invoker).output)


@pytest.fixture
def target(function: ExpertProcess, tiny: TinyPartition) -> Target:
    invocation = tiny.invocation(function.name)
    return Target(function.name, invocation, tiny, lambda call: call.forward(function.address))


@pytest.mark.parametrize("case", [case for case in RETRIED if RETRIED[case][1] is not InvocationTimeout])
def test_a_retry_mends_a_failure_behind_the_gateway(target: Target, case: str) -> None:
    failure, _ = RETRIED[case]
    with loopback_server(target.good, failure, failure) as gateway, invoker_of(gateway.address) as invoker:
        target.check(invoker)
        assert len(gateway.paths) == 3
        assert invoker.statistics[target.name].retries == 2
        assert invoker.usage.invocations == 1


def test_a_call_without_an_answer_is_retried(target: Target) -> None:
    policy = replace(PATIENT, attempt_timeout=0.5)
    with loopback_server(target.good, never) as gateway, invoker_of(gateway.address, policy) as invoker:
        target.check(invoker)
        assert len(gateway.paths) >= 2


@pytest.mark.parametrize("case", RETRIED)
def test_a_permanent_failure_is_raised_with_its_own_error(target: Target, case: str) -> None:
    failure, error = RETRIED[case]
    policy = TwoAttempts(attempt_timeout=0.2 if error is InvocationTimeout else 20)
    with loopback_server(failure) as gateway, invoker_of(gateway.address, policy) as invoker:
        with pytest.raises(error, match=target.name) as raised:
            target.invoke(invoker)
        assert raised.type is error
        assert len(gateway.paths) == 2
        assert invoker.usage.invocations == 0


def test_direct_calls_do_not_wait_for_a_gateway(target: Target) -> None:
    """A function that failed once is called directly again when its gateway does not answer."""
    policy = replace(PATIENT, first_gateway_timeout=0.2)
    with (
        loopback_server(never, target.good) as gateway,
        invoker_of(gateway.address, policy) as invoker,
    ):
        for _ in range(3):
            target.check(invoker)
        assert len(gateway.paths) == 1
        own = invoker.address_of(target.name)
        assert own is not None
        invoker._connections.avoid(own)
        target.check(invoker)
        assert len(gateway.paths) > 1
        assert invoker.statistics[target.name].cold_starts == 1


def test_attempts_end_at_the_deadline(target: Target) -> None:
    policy = InvocationPolicy(attempt_timeout=0.2, deadline=0.5, first_backoff=0.01, max_backoff=0.02)
    with loopback_server(status(503, "starting")) as gateway, invoker_of(gateway.address, policy) as invoker:
        began = time.monotonic()
        with pytest.raises(GatewayError, match=target.name):
            target.invoke(invoker)
        assert time.monotonic() - began < 10
        assert len(gateway.paths) > 2


@pytest.mark.parametrize("case", FINAL)
def test_a_refusal_is_raised_at_once(target: Target, case: str) -> None:
    refusal, error = FINAL[case]
    with loopback_server(refusal) as gateway, invoker_of(gateway.address) as invoker:
        with pytest.raises(error, match=target.name) as raised:
            target.invoke(invoker)
        assert raised.type is error
        assert len(gateway.paths) == 1


@pytest.mark.parametrize("case", [*RETRIED, *FINAL])
def test_a_failure_at_an_old_address_is_retried_through_the_gateway(target: Target, case: str) -> None:
    failure, error = (RETRIED | FINAL)[case]
    policy = replace(PATIENT, attempt_timeout=1.0) if error is InvocationTimeout else PATIENT
    with loopback_server(failure) as old:
        first = plain(200, body_of(replace(RESULT, address=str(old.address))))
        with loopback_server(target.good, first) as gateway, invoker_of(gateway.address, policy) as invoker:
            target.invoke(invoker)
            target.check(invoker)
            target.check(invoker)
            assert old.paths == ["/"]
            assert len(gateway.paths) == 2
            assert invoker.statistics[target.name].retries == 1


@pytest.mark.parametrize("address", ["nowhere", "a..b:80", "127.0.0.1:1"])
def test_an_unreachable_address_is_replaced_by_the_gateway(target: Target, address: str) -> None:
    first = plain(200, body_of(replace(RESULT, address=address)))
    with loopback_server(target.good, first) as gateway, invoker_of(gateway.address) as invoker:
        target.invoke(invoker)
        target.check(invoker)
        assert len(gateway.paths) == 2


def test_an_address_that_accepts_no_connection_is_tried_once(target: Target) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf, socket.socket() as queued:
        queued.connect(deaf.getsockname())  # Fills the backlog: the next connection has to wait.
        unreachable = Address(*deaf.getsockname())
        answer = plain(200, body_of(replace(RESULT, address=str(unreachable))))
        policy = replace(PATIENT, first_patience=0.1, health_timeout=0.1)
        with loopback_server(answer) as gateway, invoker_of(gateway.address, policy) as invoker:
            for _ in range(4):
                target.invoke(invoker)
            assert invoker.statistics[target.name].retries == 1
            assert len(gateway.paths) == 4


def test_only_failed_invocations_are_repeated(target: Target) -> None:
    invocations = {"a": target.invocation, "b": target.invocation, "c": target.invocation}

    def fail_b_once(call: Call) -> None:
        is_first = gateway.paths.count(call.path) == 1
        status(503, "starting")(call) if call.path == "/function/b" and is_first else target.good(call)

    with loopback_server(fail_b_once) as gateway, invoker_of(gateway.address) as invoker:
        results = invoker.begin(invocations).wait()
    assert sorted(gateway.paths) == ["/function/a", "/function/b", "/function/b", "/function/c"]
    for name, invocation in invocations.items():
        target.tiny.check(invocation, results[name].output)


def test_an_unreachable_gateway_is_named(target: Target) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))  # It does not listen, so that connections are refused.
        with (
            invoker_of(Address(*holder.getsockname()), TwoAttempts()) as invoker,
            pytest.raises(
                FunctionUnavailable, match=r"the gateway of .* cannot be reached: Connection refused"
            ),
        ):
            target.invoke(invoker)


@pytest.mark.parametrize("answer", [never, trickle, status(503, "starting")])
def test_an_abort_ends_the_wait_and_every_later_one(target: Target, answer: Responder) -> None:
    received = Event()

    def receive(call: Call) -> None:
        received.set()
        answer(call)

    policy = InvocationPolicy(attempt_timeout=60, deadline=90, first_backoff=60, max_backoff=60)
    with loopback_server(receive) as gateway, invoker_of(gateway.address, policy) as invoker:
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(target.invoke, invoker)
            assert received.wait(10)
            invoker.abort()
            with pytest.raises(FunctionUnavailable):
                waiting.result(timeout=10)
        gateway.otherwise = target.good
        with pytest.raises(FunctionUnavailable, match="aborted"):
            target.invoke(invoker)
