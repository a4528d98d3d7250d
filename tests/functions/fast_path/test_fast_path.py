"""Calls that C answers have the answers that Python gives, and everything else is Python's."""

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from functions.contract.messages import Invocation, InvocationResult
from functions.contract.secret import CALLER_HEADER, FUNCTION_HEADER, FunctionSecret
from functions.expert import fast_calls
from functions.expert.authentication import Authentication
from functions.fast_path.shared import fast_path_type
from functions.http.server import MAX_CONNECTIONS
from tests.support.functions.function_server import SECONDS, Caller, FunctionServer, function_server
from tests.support.models.tiny_partition import TinyPartition

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(fast_path_type() is None, reason="the extension is not built"),
]


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a change of the residency makes a report due."""
    monkeypatch.setattr(fast_calls, "REPORT_SECONDS", 1e6)


@pytest.fixture
def server(tiny: TinyPartition, unhurried: None) -> Iterator[FunctionServer]:
    with function_server(tiny, in_c=True) as running:
        yield running


@pytest.fixture
def caller(server: FunctionServer, tiny: TinyPartition) -> Iterator[Caller]:
    """A connection over which all experts have been called."""
    with server.caller() as caller:
        warm(caller, tiny, server)
        yield caller


def warm(caller: Caller, tiny: TinyPartition, server: FunctionServer) -> None:
    """Call all experts; the last report over the connection then holds."""
    for layer in (*tiny.manifest.moe_layers, 0):
        caller.invoke(whole(tiny, layer))
    assert server.block.residency.report().resident_experts == len(server.block.manifest.experts)


def whole(tiny: TinyPartition, layer: int = 0, rows: int = 2) -> Invocation:
    """A call of all experts of the first function's layer."""
    experts = tiny.manifest.block(tiny.functions[0]).experts[layer]
    invocation = tiny.invocation(tiny.functions[0], layer, rows=rows, top_k=len(experts))
    return replace(invocation, expert_index=np.tile(np.array(experts, np.int16), (rows, 1)))


def was_in_c(result: InvocationResult) -> bool:
    """Only Python sends reports."""
    return result.residency is None


@pytest.mark.parametrize("dtype", ["f32", "bf16", "int8"])
def test_both_ways_give_the_same_bits_for_every_layer(
    partitions: Mapping[str, TinyPartition], unhurried: None, dtype: str
) -> None:
    tiny = partitions[dtype]
    invocations = [
        tiny.invocation(tiny.functions[0], layer, rows=rows, top_k=top_k, seed=rows)
        for layer in tiny.manifest.moe_layers
        for rows, top_k in ((1, 4), (7, 2), (70, 4))
    ]
    outputs: list[list[bytes]] = []
    for in_c in (False, True):
        with function_server(tiny, in_c=in_c) as running, running.caller() as caller:
            warm(caller, tiny, running)
            results = [caller.invoke(invocation) for invocation in invocations]
            assert [was_in_c(result) for result in results] == [in_c] * len(results)
            outputs.append([result.output.tobytes() for result in results])
            for invocation, result in zip(invocations, results, strict=True):
                tiny.check(invocation, result.output)
                assert result.instance == running.function.instance
                assert result.address == "{}:{}".format(*running.address)
                assert result.cold_experts == 0
                assert 0 < result.seconds < SECONDS
    assert outputs[0] == outputs[1]


def test_both_ways_estimate_the_next_use_alike(tiny: TinyPartition, unhurried: None) -> None:
    found = []
    for in_c in (False, True):
        with function_server(tiny, in_c=in_c) as running, running.caller() as caller:
            warm(caller, tiny, running)
            for seed in range(20):
                caller.invoke(tiny.invocation(tiny.functions[0], seed % 3, rows=1 + seed, seed=seed))
            # Python counts a call after its answer.
            caller.post(b"")
            uses = running.block.residency.next_use
            found.append((uses.uses, uses.rounds, uses.last_used, uses.state.calls, uses.state.layer))
    for python, c in zip(*found, strict=True):
        np.testing.assert_allclose(c, python, rtol=1e-12)


def test_calls_in_c_are_counted_as_others(
    server: FunctionServer, caller: Caller, tiny: TinyPartition
) -> None:
    state = server.function.state
    before = state.invocations, state.rows, state.seconds
    seconds = [caller.invoke(whole(tiny, rows=3)).seconds for _ in range(5)]
    assert (state.invocations, state.rows) == (before[0] + 5, before[1] + 15)
    assert state.seconds == pytest.approx(before[2] + sum(seconds), abs=1e-5)
    assert state.in_flight == 0
    assert server.function.idle_seconds < SECONDS
    assert state.used_at <= time.monotonic()


def test_a_report_comes_after_each_change_and_on_each_connection_once(
    server: FunctionServer, caller: Caller, tiny: TinyPartition
) -> None:
    def reports(caller: Caller) -> list[int | None]:
        residencies = [caller.invoke(whole(tiny)).residency for _ in range(3)]
        return [None if each is None else each.limit_bytes for each in residencies]

    limit = server.block.residency.report().limit_bytes
    assert reports(caller) == [None, None, None]
    with server.caller() as other:
        assert reports(other) == [limit, None, None]
        server.block.residency.set_limit(limit + 1)
        assert reports(caller) == [limit + 1, None, None]
        assert reports(other) == [limit + 1, None, None]


def test_a_report_comes_after_a_while(tiny: TinyPartition, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_calls, "REPORT_SECONDS", 0.0)
    with function_server(tiny, in_c=True) as running, running.caller() as caller:
        warm(caller, tiny, running)
        assert not was_in_c(caller.invoke(whole(tiny)))


def test_each_caller_behind_a_gateway_gets_reports(caller: Caller, tiny: TinyPartition) -> None:
    """A gateway forwards the calls of all its callers over the same connections."""
    for address in ("10.0.0.1:2000", "10.0.0.2:2000"):
        result = caller.invoke(whole(tiny), **{"X-Forwarded-For": address})
        assert result.residency is not None


def without_the_last(invocation: Invocation) -> Invocation:
    index = invocation.expert_index.copy()
    index[:, -1] = -1
    return replace(invocation, expert_index=index)


LEFT_TO_PYTHON: dict[str, Callable[[Invocation], Invocation]] = {
    "a prefetch": lambda i: replace(i, prefetch={1: [0]}),
    "a limit": lambda i: replace(i, resident_limit=1 << 40),
    "no rows": lambda i: replace(
        i,
        hidden_states=i.hidden_states[:0],
        expert_index=i.expert_index[:0],
        expert_weight=i.expert_weight[:0],
    ),
    "no experts": lambda i: replace(i, expert_index=i.expert_index * 0 - 1),
}


@pytest.mark.parametrize("case", LEFT_TO_PYTHON)
def test_calls_that_are_not_plain_are_left_to_python(
    server: FunctionServer, caller: Caller, tiny: TinyPartition, case: str
) -> None:
    result = caller.invoke(LEFT_TO_PYTHON[case](whole(tiny)))
    assert not was_in_c(result)
    if case != "a prefetch":
        caller.invoke(whole(tiny))
        assert was_in_c(caller.invoke(whole(tiny)))


def test_predictions_end_with_the_call_of_their_layer(caller: Caller, tiny: TinyPartition) -> None:
    caller.invoke(replace(whole(tiny), prefetch={1: [0]}))
    # Python has to account for whether predictions come true.
    assert not was_in_c(caller.invoke(whole(tiny, 0)))
    assert not was_in_c(caller.invoke(whole(tiny, 1)))
    assert was_in_c(caller.invoke(whole(tiny, 0)))


def test_dropped_experts_are_read_again(server: FunctionServer, caller: Caller, tiny: TinyPartition) -> None:
    server.block.residency.drop_idle()
    assert (server.block.residency.ready == -1).all()
    again = caller.invoke(whole(tiny))
    assert again.cold_experts == 2
    tiny.check(whole(tiny), again.output)
    some = without_the_last(whole(tiny))
    result = caller.invoke(some)
    assert was_in_c(result)
    tiny.check(some, result.output)


def test_the_secret_is_checked_in_both_ways(tiny: TinyPartition, unhurried: None, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    name = tiny.functions[0]

    def write(text: str) -> FunctionSecret:
        file.write_text(text)
        return FunctionSecret.read(file)

    now = [0.0]
    old = write("an old secret of the functions")
    authentication = Authentication(name, file, lambda: now[0])
    with (
        function_server(tiny, in_c=True, authentication=authentication) as running,
        running.caller() as caller,
    ):
        body = b"".join(whole(tiny).encode())

        def ask(secret: FunctionSecret | None) -> tuple[int, bool]:
            headers = {CALLER_HEADER: secret.caller_proof(name)} if secret else {}
            answer = caller.post(body, headers)
            if answer.status != 200:
                return answer.status, False
            assert secret
            assert answer.headers[FUNCTION_HEADER] == secret.function_proof(name)
            return 200, was_in_c(answer.result)

        assert [ask(old) for _ in range(3)][-1] == (200, True)
        assert ask(None) == (401, False)
        new = write("a new secret of the functions")
        now[0] = 10.0
        assert ask(old) == (200, True)  # Nobody has looked at the file yet.
        assert ask(new)[0] == 200
        assert ask(new) == (200, True)
        assert ask(old) == (401, False)


def test_a_running_call_in_c_keeps_its_experts(
    server: FunctionServer, caller: Caller, tiny: TinyPartition
) -> None:
    """As if C computed now: others wait for the end of the call, and drop nothing that it uses."""
    residency = server.block.residency
    with residency.changed:
        residency.state.in_call, residency.state.held = 1, 1
        residency.held[0] = 0
    resident = residency.report().resident_experts
    residency.drop_idle()
    assert residency.report().resident_experts == 1
    residency.set_limit(0)
    assert residency.report().resident_experts == 1
    answers: list[InvocationResult] = []
    waiting = Thread(target=lambda: answers.append(caller.invoke(whole(tiny))))
    waiting.start()
    while not server.function.state.in_flight:
        time.sleep(0.01)
    assert not answers
    with residency.changed:
        residency.state.in_call = residency.state.held = 0
        assert residency.state.wanted
        residency.changed.notify_all()
    waiting.join(SECONDS)
    tiny.check(whole(tiny), answers[0].output)
    assert residency.report().resident_experts < resident


def test_a_call_in_c_waits_for_the_one_before(
    server: FunctionServer, caller: Caller, tiny: TinyPartition
) -> None:
    residency = server.block.residency
    with residency.changed:
        residency.state.in_call = 1
    answers: list[InvocationResult] = []
    waiting = Thread(target=lambda: answers.append(caller.invoke(whole(tiny))))
    waiting.start()
    while not residency.state.wanted:
        time.sleep(0.001)
    with residency.changed:
        residency.state.in_call = residency.state.wanted = 0
        residency.changed.notify_all()
    waiting.join(SECONDS)
    assert was_in_c(answers[0])


def test_callers_at_once_get_their_own_answers_while_experts_come_and_go(
    server: FunctionServer, tiny: TinyPartition
) -> None:
    residency, size = server.block.residency, tiny.manifest.expert_nbytes
    invocations = [
        tiny.invocation(tiny.functions[0], seed % 3, rows=1 + seed, seed=seed) for seed in range(6)
    ]
    failures: list[BaseException] = []

    def call(invocation: Invocation) -> None:
        try:
            with server.caller() as caller:
                for _ in range(60):
                    tiny.check(invocation, caller.invoke(invocation).output)
        except BaseException as error:
            failures.append(error)

    threads = [Thread(target=call, args=(invocation,)) for invocation in invocations]
    for thread in threads:
        thread.start()
    number = 0
    while any(thread.is_alive() for thread in threads):
        residency.set_limit((number % 7) * size)
        if number % 3 == 0:
            residency.drop_idle()
        number += 1
        time.sleep(0.002)
    assert failures == []
    assert server.function.state.in_flight == 0
    assert residency.state.in_call == residency.state.held == 0


def test_a_stopped_server_answers_a_last_call_and_closes(tiny: TinyPartition, unhurried: None) -> None:
    with function_server(tiny, in_c=True) as running, running.caller() as caller:
        warm(caller, tiny, running)
        running.server.stop()
        answer = caller.post(b"".join(whole(tiny).encode()))
        assert was_in_c(answer.result)
        assert answer.headers["Connection"] == "close"


def test_a_connection_in_c_gives_way_and_is_counted(server: FunctionServer, tiny: TinyPartition) -> None:
    with ExitStack() as stack:
        callers = [stack.enter_context(server.caller()) for _ in range(3)]
        for caller in callers:
            warm(caller, tiny, server)
        connections = server.server.connections
        with connections.changed:
            assert connections._give_way(lambda _: True)
        # The one that was called first has waited longest.
        assert callers[0].connection.sock.recv(1) == b""
        for caller in callers[1:]:
            assert was_in_c(caller.invoke(whole(tiny)))
        assert connections.state.nbytes == 0


@pytest.mark.parametrize("pieces", [1, 2, 7])
def test_a_call_may_come_in_pieces(
    server: FunctionServer, caller: Caller, tiny: TinyPartition, pieces: int
) -> None:
    """The head in one piece, and the body in several: C waits for all of it, also if it is large."""
    invocation = whole(tiny, rows=1000)
    body = b"".join(invocation.encode())
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    connection = caller.connection.sock
    step = -(-len(body) // pieces)
    connection.sendall(head + body[:100])
    time.sleep(0.01)
    for start in range(100, len(body), step):
        connection.sendall(body[start : start + step])
        time.sleep(0.01)
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(1 << 16)
    head, _, found = received.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split()[0])
    while len(found) < length:
        found += connection.recv(1 << 16)
    result = InvocationResult.decode(found)
    assert was_in_c(result)
    tiny.check(invocation, result.output)
    assert server.server.connections.state.nbytes == 0


def test_a_body_that_stops_coming_ends_the_connection(
    server: FunctionServer, tiny: TinyPartition, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("functions.http.server.RECEIVE_SECONDS", 0.1)
    body = b"".join(whole(tiny).encode())
    with closing(socket.create_connection(server.address, SECONDS)) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:-1])
        assert connection.recv(1) == b""


def test_calls_that_stall_in_c_give_way_to_new_connections(
    server: FunctionServer, tiny: TinyPartition
) -> None:
    body = b"".join(whole(tiny, rows=1000).encode())
    with ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS):
            connection = socket.create_connection(server.address, SECONDS)
            stack.enter_context(closing(connection))
            connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:20000])
        with server.caller() as caller:
            tiny.check(whole(tiny), caller.invoke(whole(tiny)).output)
    connections = server.server.connections
    with connections.changed:
        assert connections.changed.wait_for(lambda: connections.state.nbytes == 0, SECONDS)


def test_an_answer_that_nobody_reads_is_given_up(
    server: FunctionServer, tiny: TinyPartition, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("functions.http.server.SEND_SECONDS", 0.1)
    body = b"".join(whole(tiny, rows=5000).encode())
    call = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with server.caller() as caller:
        warm(caller, tiny, server)
        connection = caller.connection.sock
        connection.settimeout(SECONDS)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            connection.sendall(50 * call)
    assert server.function.state.in_flight == 0
