"""The requests that a function answers in C: what it answers, Python would have answered alike."""

import re
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np

from bench.robustness.fuzz.support import model
from bench.robustness.fuzz.support.json_mutation import mutated_message
from bench.robustness.fuzz.support.mutation import mutated
from bench.robustness.fuzz.support.target import Misbehaviour, Target
from bench.robustness.fuzz.targets.http import example_requests
from bench.robustness.fuzz.targets.messages import example_invocations
from functions.contract.messages import Invocation, InvocationResult
from functions.contract.process import MAX_BODY_BYTES
from functions.expert.expert_block import ExpertBlock
from functions.expert.expert_function import ExpertFunction
from functions.expert.fast_calls import fast_path
from functions.fast_path.shared import ClientState
from functions.http.connections import Connections
from functions.http.messages import RequestReader
from functions.http.server import FastPath
from functions.kernels import load_kernel

_SECONDS = 10.0
_MOST_BYTES = 100_000
"""Of an input, so that the sockets' buffers hold all of it."""
_MUTATED = 0.7
"""How often an input is not valid."""
_RECEIVE_BYTES = 65536
_LENGTH = re.compile(rb"\r\nContent-Length: (\d+)\r\n")


@contextmanager
def fast_calls(folder: Path) -> Iterator[Target]:
    """Some requests over one connection, which C answers until it leaves one to Python."""
    manifest = model.manifest(folder, "int8")
    messages = example_invocations(manifest)
    plain = [message for message in messages if _is_plain(Invocation.decode(message))]
    examples = example_requests(plain)
    block = ExpertBlock.open(folder / "int8", manifest.blocks[0].function, load_kernel(), threads=2)
    with closing(block.residency):
        function = ExpertFunction(max_in_flight=1)
        function.opened(block)
        for message in messages:
            # All of its experts come into memory, and stay there.
            block.run(replace(Invocation.decode(message), resident_limit=None, prefetch={}))
            block.residency.record_call()
        compared = _Compared(function, block)

        def make(random: Random) -> bytes:
            calls = [_call(random, examples, plain, messages) for _ in range(random.choice((1, 1, 1, 2)))]
            return b"".join(calls)[:_MOST_BYTES]

        yield Target(make, compared.run)


def _is_plain(invocation: Invocation) -> bool:
    return len(invocation.hidden_states) > 0 and invocation.resident_limit is None


def _call(random: Random, examples: list[bytes], plain: list[bytes], messages: list[bytes]) -> bytes:
    if random.random() > _MUTATED:
        return random.choice(examples)
    if random.random() < 0.5:
        return mutated(random.choice(examples), random, examples)
    return example_requests([mutated_message(random.choice(plain), random, messages)])[0]


class _Compared:
    """Gives the same bytes to both ways."""

    def __init__(self, function: ExpertFunction, block: ExpertBlock) -> None:
        self._function = function
        self._residency = block.residency
        self._connections = Connections(1, MAX_BODY_BYTES)
        path = fast_path(function, block, self._connections)
        assert path is not None
        self._fast_path: FastPath = path

    def run(self, data: bytes) -> bool:
        """Whether C has answered at least one call; raises `Misbehaviour` where the ways differ."""
        here, there = socket.socketpair()
        with here, there:
            there.sendall(data)
            there.shutdown(socket.SHUT_WR)
            left = self._serve(here)
            here.shutdown(socket.SHUT_WR)
            answers = _bodies(_received(there))
        if left is not None and not data.endswith(left):
            raise Misbehaviour("Python gets other bytes than those that have arrived")
        for answer, result in zip(answers, self._python(data, len(answers)), strict=True):
            if InvocationResult.decode(answer).output.tobytes() != result.output.tobytes():
                raise Misbehaviour("the outputs differ")
        return bool(answers)

    def _serve(self, connection: socket.socket) -> bytes | None:
        """What is left to Python, with what C has not received; None if C has seen the end."""
        client = ClientState.new()
        client.reported, client.reported_at = self._residency.state.version, time.monotonic()
        left = self._fast_path.serve(connection.fileno(), client, "here", False, _SECONDS, _SECONDS, _SECONDS)
        states = self._function.state.in_flight, self._residency.state.in_call, self._residency.state.held
        if any(states):
            raise Misbehaviour(f"calls in flight, calls of experts, and experts in use: {states}")
        self._connections.state.nbytes = 0
        return None if left is None else left + _received(connection)

    def _python(self, data: bytes, count: int) -> list[InvocationResult]:
        """Python's answers to the first calls in the bytes."""
        reader = RequestReader(MAX_BODY_BYTES, "here", lambda: None)
        with closing(reader):
            reader.place(memoryview(b""))
            reader.feed(memoryview(data[: _end_of(data, count)]))
            if len(reader.complete) != count:
                raise Misbehaviour(f"C answers {count} calls, Python reads {len(reader.complete)}")
            with np.errstate(all="ignore"):
                responses = [self._function(request) for request, _ in reader.complete]
        for response in responses:
            if response.status != 200:
                raise Misbehaviour(f"C answers a call that Python refuses with {response.status}")
            assert response.after is not None
            response.after()
        return [InvocationResult.decode(b"".join(response.body)) for response in responses]


def _end_of(data: bytes, count: int) -> int:
    """Where the first calls end. All of them have a length."""
    end = 0
    for _ in range(count):
        body = data.index(b"\r\n\r\n", end) + 4
        lengths = re.findall(rb"\r\ncontent-length: *(\d+)\r\n", data[end:body].lower())
        if len(lengths) != 1:
            raise Misbehaviour(f"C answers a call with the lengths {lengths}")
        end = body + int(lengths[0])
    return end


def _received(connection: socket.socket) -> bytes:
    """All bytes until the peer's end."""
    return b"".join(iter(lambda: connection.recv(_RECEIVE_BYTES), b""))


def _bodies(received: bytes) -> list[bytes]:
    """The bodies of C's answers."""
    bodies = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head + b"\r\n")
        if not head.startswith(b"HTTP/1.1 200 OK\r\n") or length is None or len(rest) < int(length[1]):
            raise Misbehaviour(f"an answer begins with {head[:200]!r}")
        bodies.append(rest[: int(length[1])])
        received = rest[int(length[1]) :]
    return bodies
