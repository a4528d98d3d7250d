"""Sending and receiving in C: plain answers mean the same as in Python, and all others are left to it."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from threading import Thread
from typing import Any

import numpy as np
import pytest

from control_plane.faas.wire import plain_calls
from functions.contract.messages import InvocationResult, ResidencyReport
from functions.contract.safetensors_codec import CONTENT_TYPE
from functions.http.messages import FunctionResponse

pytestmark = pytest.mark.skipif(not plain_calls.are_compiled(), reason="the C extension is not built")

PROOF = "0123456789abcdef"
VALUES = np.arange(72, dtype=np.float32).reshape(3, 24)
GOOD = InvocationResult(VALUES, "an instance", "127.0.0.1:9", 0.25, 2)

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pairs() -> Iterator[Callable[[], Pair]]:
    """Makes pairs of connected sockets: the caller's and the function's."""
    with ExitStack() as stack:

        def make() -> Pair:
            ours, theirs = socket.socketpair()
            stack.enter_context(ours)
            stack.enter_context(theirs)
            return ours, theirs

        yield make


def encoded(result: InvocationResult, **changes: Any) -> bytes:
    response = FunctionResponse(**{"body": result.encode(), "content_type": CONTENT_TYPE, **changes})
    return b"".join(response.encode(keep_alive=True))


def receive(
    ours: socket.socket, like: np.ndarray = VALUES, proof: str = "", seconds: float = 5
) -> tuple[plain_calls.PlainAnswer | bytes, np.ndarray]:
    output = np.full_like(like, 7)
    (answer,) = plain_calls.receive(seconds, [(ours.fileno(), proof.encode(), output)])
    return answer, output


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
@pytest.mark.parametrize("rows", [0, 1, 3, 4000])
@pytest.mark.parametrize("proof", ["", PROOF])
def test_a_plain_answer_is_read(pairs: Callable[[], Pair], dtype: Any, rows: int, proof: str) -> None:
    output = np.random.default_rng(rows).integers(0, 999, (rows, 24)).astype(dtype)
    data = encoded(replace(GOOD, output=output), proof=proof)
    ours, theirs = pairs()
    sending = Thread(target=theirs.sendall, args=(data,))
    sending.start()
    answer, got = receive(ours, output, proof)
    sending.join()
    body = data.partition(b"\r\n\r\n")[2]
    assert answer == ("an instance", "127.0.0.1:9", 0.25, 2, len(body))
    np.testing.assert_array_equal(got, output)


@pytest.mark.parametrize("seconds", [0.0, 0.000001, 0.1, 1.000007, 12345.678901, 999999.999999])
def test_times_are_read_as_python_reads_them(pairs: Callable[[], Pair], seconds: float) -> None:
    result = replace(GOOD, seconds=seconds)
    ours, theirs = pairs()
    theirs.sendall(encoded(result))
    answer, _ = receive(ours)
    assert isinstance(answer, plain_calls.PlainAnswer)
    assert answer.seconds == InvocationResult.decode(b"".join(result.encode())).seconds


def test_an_answer_may_come_in_pieces(pairs: Callable[[], Pair]) -> None:
    ours, theirs = pairs()

    def trickle() -> None:
        for byte in encoded(GOOD):
            theirs.sendall(bytes([byte]))

    sending = Thread(target=trickle)
    sending.start()
    answer, got = receive(ours)
    sending.join()
    assert isinstance(answer, plain_calls.PlainAnswer)
    np.testing.assert_array_equal(got, VALUES)


def test_an_answer_that_has_arrived_is_read_when_time_is_up(pairs: Callable[[], Pair]) -> None:
    ours, theirs = pairs()
    output = np.ones((500, 24), np.float32)
    theirs.sendall(encoded(replace(GOOD, output=output)))
    answer, got = receive(ours, output, seconds=-1)
    assert isinstance(answer, plain_calls.PlainAnswer)
    np.testing.assert_array_equal(got, output)


PLAIN = encoded(GOOD)
SPECIAL = {
    "a report": encoded(replace(GOOD, residency=ResidencyReport(read_bytes=1))),
    "another status": encoded(GOOD, status=503),
    "another header": PLAIN.replace(b"Connection: keep-alive", b"Connection: close"),
    "a proof": encoded(GOOD, proof=PROOF),
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    "another dtype": encoded(replace(GOOD, output=VALUES.astype(np.uint16))),
    "another shape": encoded(replace(GOOD, output=VALUES.reshape(6, 12))),
    "a long name": encoded(replace(GOOD, instance="x" * 65)),
    "an escape": encoded(replace(GOOD, instance='"')),
    "more letters": encoded(replace(GOOD, instance="é")),
    "a long time": PLAIN.replace(b'"0.250000"', b'"1234567.0"'),
    "a negative time": PLAIN.replace(b'"0.250000"', b'"-0.25000"'),
    "no number": PLAIN.replace(b'"cold_experts":"2"', b'"cold_experts":"x"'),
    "a wrong length": PLAIN.replace(b"Content-Length: ", b"Content-Length: 1"),
    "more than was asked for": PLAIN + b"H",
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
}


@pytest.mark.parametrize("data", SPECIAL.values(), ids=SPECIAL)
def test_any_other_answer_is_left_to_python(pairs: Callable[[], Pair], data: bytes) -> None:
    ours, theirs = pairs()
    theirs.sendall(data)
    assert receive(ours)[0] == data


@pytest.mark.parametrize("proof", [PROOF[:-1] + "x", "", PROOF[:-1], PROOF + "0"])
def test_an_answer_with_another_proof_is_left_to_python(pairs: Callable[[], Pair], proof: str) -> None:
    ours, theirs = pairs()
    theirs.sendall(encoded(GOOD, proof=proof))
    assert receive(ours, proof=PROOF)[0] == encoded(GOOD, proof=proof)


@pytest.mark.parametrize("length", [0, 1, 60, 200, len(PLAIN) - 1])
@pytest.mark.parametrize("ends", [False, True])
def test_a_part_of_an_answer_is_left_to_python(pairs: Callable[[], Pair], length: int, ends: bool) -> None:
    ours, theirs = pairs()
    theirs.sendall(PLAIN[:length])
    if ends:
        theirs.shutdown(socket.SHUT_WR)
    began = time.monotonic()
    assert receive(ours, seconds=0.05)[0] == PLAIN[:length]
    assert ends or time.monotonic() - began >= 0.05


def test_one_special_answer_ends_the_wait_for_the_others(pairs: Callable[[], Pair]) -> None:
    connections = [pairs() for _ in range(3)]
    connections[0][1].sendall(PLAIN)
    connections[1][1].sendall(PLAIN[:300])
    connections[2][1].sendall(SPECIAL["a report"])
    outputs = [np.zeros_like(VALUES) for _ in connections]
    calls = [(ours.fileno(), b"", output) for (ours, _), output in zip(connections, outputs, strict=True)]
    answered, broken, special = plain_calls.receive(60, calls)
    assert isinstance(answered, plain_calls.PlainAnswer)
    np.testing.assert_array_equal(outputs[0], VALUES)
    assert (broken, special) == (PLAIN[:300], SPECIAL["a report"])


def test_requests_are_sent_as_far_as_the_network_takes_them(pairs: Callable[[], Pair]) -> None:
    small, large, closed, unasked = (pairs() for _ in range(4))
    closed[1].close()
    unasked[1].sendall(b"x")
    parts = b"head", memoryview(bytes(1 << 24)), b"", b"tail"
    left = plain_calls.send(
        [
            (small[0].fileno(), b"a", b"", bytearray(b"bc")),
            (large[0].fileno(), *parts),
            (closed[0].fileno(), b"a"),
            (unasked[0].fileno(), b"a"),
        ]
    )
    assert left[0] == 0
    assert small[1].recv(9) == b"abc"
    assert 4 < left[1] < 1 << 24
    assert left[2:] == [-1, -1]


def test_nothing_is_sent_twice_after_a_failure(pairs: Callable[[], Pair]) -> None:
    ours, theirs = pairs()
    ours.shutdown(socket.SHUT_WR)
    assert plain_calls.send([(ours.fileno(), b"ab")]) == [2]
    assert theirs.recv(9) == b""
