"""When the invoker gives up, and what its error says: which functions, and why."""

import time
from contextlib import ExitStack

import pytest

from control_plane.errors import (
    FunctionNotFound,
    FunctionUnavailable,
    GatewayError,
    ProtocolError,
)
from control_plane.faas.call import InvocationPolicy
from functions.http.messages import FunctionResponse
from tests.support.functions.invoking import PATIENT, answers, by_path, invocation, invoker_of, never, plain
from tests.support.functions.loopback_server import Responder, loopback_server

pytestmark = pytest.mark.usefixtures("either_way")

BRIEF = InvocationPolicy(attempt_timeout=5, deadline=0.5, first_backoff=0.01, max_backoff=0.02)
NOT_FOUND = plain(404, b"error finding function f")


def status(number: int, code: str, message: str = "no") -> Responder:
    return plain(number, b"".join(FunctionResponse.error(number, code, message).body))


def error_of(responders: dict[str, Responder], policy: InvocationPolicy = BRIEF) -> GatewayError:
    """The error of invoking these functions together."""
    with loopback_server(by_path(responders)) as server, invoker_of(server.address, policy) as invoker:
        pending = invoker.begin({name: invocation() for name in responders})
        with pytest.raises(GatewayError) as raised:
            pending.wait()
        return raised.value


def test_a_404_of_a_gateway_without_its_provider_is_tried_again() -> None:
    with (
        loopback_server(answers(), *[NOT_FOUND] * 5) as server,
        invoker_of(server.address, PATIENT) as invoker,
    ):
        invoker.begin({"f": invocation()}).wait()
        assert len(server.paths) == 6


def test_a_404_counts_if_the_lists_of_functions_agree() -> None:
    with ExitStack() as stack:
        server = stack.enter_context(loopback_server(NOT_FOUND))
        asked: list[str] = []
        absent = {"f": False}

        def is_absent(name: str) -> bool:
            asked.append(name)
            absent["f"] = len(asked) == 3
            return absent["f"]

        invoker = stack.enter_context(invoker_of(server.address, PATIENT, is_absent=is_absent))
        with pytest.raises(FunctionNotFound, match="no function f: deploy it first") as raised:
            invoker.begin({"f": invocation()}).wait()
        assert raised.value.functions == {"f"}
        assert asked == ["f"] * 3
        assert len(server.paths) == 3


def test_a_404_until_the_deadline_is_told_as_such() -> None:
    error = error_of({"f": NOT_FOUND})
    assert type(error) is FunctionNotFound
    assert "deploy it first" in str(error)


def test_a_direct_address_is_used_while_the_gateway_finds_nothing() -> None:
    with ExitStack() as stack:
        function = stack.enter_context(loopback_server(answers(), answers(), status(429, "busy")))
        server = stack.enter_context(loopback_server(NOT_FOUND, answers(function.address)))
        invoker = stack.enter_context(invoker_of(server.address))
        for _ in range(4):
            invoker.begin({"f": invocation()}).wait()
        assert len(function.paths) == 4
        assert len(server.paths) > 1


def test_a_404_of_a_function_is_not_taken_for_the_gateways() -> None:
    """Another function may have taken over the address."""
    with ExitStack() as stack:
        function = stack.enter_context(loopback_server(status(404, "unknown_expert")))
        server = stack.enter_context(loopback_server(never, answers(function.address)))
        invoker = stack.enter_context(invoker_of(server.address, BRIEF))
        invoker.begin({"f": invocation()}).wait()
        with pytest.raises(FunctionUnavailable, match="function f answered 404"):
            invoker.begin({"f": invocation()}).wait()


@pytest.mark.parametrize("failure", [never, status(503, "starting"), NOT_FOUND])
def test_all_functions_that_have_not_answered_at_the_deadline_are_named(failure: Responder) -> None:
    error = error_of({"a": failure, "b": answers(), "c": failure})
    assert error.functions == {"a", "c"}


@pytest.mark.parametrize("refusal", [status(409, "wrong_model"), status(404, "unknown_expert")])
def test_only_the_function_that_refuses_is_named(refusal: Responder) -> None:
    error = error_of({"a": never, "b": refusal, "c": answers()}, PATIENT)
    assert type(error) is ProtocolError
    assert error.functions == {"b"}


def test_an_abort_names_all_that_were_needed() -> None:
    with loopback_server(answers()) as server, invoker_of(server.address) as invoker:
        invoker.abort()
        with pytest.raises(FunctionUnavailable, match="aborted") as raised:
            invoker.begin({"a": invocation(), "b": invocation()}).wait()
        assert raised.value.functions == {"a", "b"}


@pytest.mark.parametrize(
    "death",
    [
        status(502, "function_failed", "function f broke off the call"),
        plain(500, b"Can't reach service for: f.\n"),
    ],
)
def test_a_function_that_keeps_dying_is_told_as_such(death: Responder) -> None:
    text = str(error_of({"f": death}))
    assert "function f answered 50" in text
    assert "broke off the call" in text or "Can't reach service" in text
    assert "memory limit is too low: see its log" in text
    assert len(text) < 500


def test_deaths_during_direct_calls_count_too() -> None:
    """As of a function that is killed for memory in each call, while its gateway starts it each time."""
    with ExitStack() as stack:
        function = stack.enter_context(loopback_server(lambda call: call.send_and_hang_up(b"")))
        server = stack.enter_context(loopback_server(status(502, "failed"), answers(function.address)))
        invoker = stack.enter_context(invoker_of(server.address, BRIEF))
        invoker.begin({"f": invocation()}).wait()
        with pytest.raises(FunctionUnavailable, match=r"broke off \d+ calls in \d+ s, perhaps because"):
            invoker.begin({"f": invocation()}).wait()


@pytest.mark.parametrize("failure", [status(503, "starting"), status(429, "busy"), NOT_FOUND, never])
def test_other_failures_are_no_deaths(failure: Responder) -> None:
    assert "memory" not in str(error_of({"f": failure}))


@pytest.mark.parametrize("failure", [never, NOT_FOUND, plain(503), plain(200, b"garbage"), plain(500, b"no")])
def test_errors_name_no_address(failure: Responder, caplog: pytest.LogCaptureFixture) -> None:
    error = error_of({"f": failure})
    assert "127.0.0.1" not in str(error)
    assert "127.0.0.1:" in caplog.text


def test_a_gateway_that_cannot_be_reached_is_given_up_at_the_deadline() -> None:
    with loopback_server(never) as server:
        address = server.address
    began = time.monotonic()
    with invoker_of(address, BRIEF) as invoker, pytest.raises(FunctionUnavailable, match="cannot be reached"):
        invoker.begin({"f": invocation()}).wait()
    assert time.monotonic() - began < 3


def test_a_prefetch_waits_for_nothing() -> None:
    with ExitStack() as stack:
        function = stack.enter_context(loopback_server(never, answers()))
        server = stack.enter_context(loopback_server(answers(function.address)))
        invoker = stack.enter_context(invoker_of(server.address))
        invoker.begin({"f": invocation()}).wait()
        invoker.begin({"f": invocation()}).wait()
        began = time.monotonic()
        for _ in range(20):
            invoker.prefetch({"f": invocation(), "unknown": invocation()})
        assert time.monotonic() - began < 1
        while function.connections < 2 and time.monotonic() - began < 10:
            time.sleep(0.01)
        assert function.connections == 2
