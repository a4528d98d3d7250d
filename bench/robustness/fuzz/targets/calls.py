"""The control plane's side of calls in C: plain answers, and arguments that nearly fit."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from bench.robustness.fuzz.support.json_mutation import mutated_message
from bench.robustness.fuzz.support.mutation import mutated
from bench.robustness.fuzz.support.target import Misbehaviour, Target
from bench.robustness.fuzz.targets.arguments import Arguments, target_of
from control_plane.engine.experts import _row_groups
from control_plane.faas.wire import _plain_calls
from control_plane.faas.wire.response_reader import ResponseReader
from functions.contract.messages import InvocationResult
from functions.contract.safetensors_codec import CONTENT_TYPE
from functions.http.messages import FunctionResponse

PROOF = "0123456789abcdef"
SHAPES = ((0, 8), (1, 8), (3, 8), (3, 700))
"""Of outputs; the last one does not fit the buffer for an answer's first bytes."""


@contextmanager
def plain_answers(folder: Path) -> Iterator[Target]:
    """The reader of plain answers. What it accepts, the readers in Python have to read alike."""
    examples = [
        answer(shape, dtype, proof)
        for shape in SHAPES
        for dtype in (np.float32, np.uint16)
        for proof in ("", PROOF)
    ]

    def make(random: Random) -> bytes:
        number = random.randrange(len(examples))
        head, end, body = examples[number].partition(b"\r\n\r\n")
        if random.random() < 0.5:
            return bytes([number]) + mutated(head + end + body, random, examples)
        message = mutated_message(body, random, [body])
        length = b"Content-Length: %d\r\n" % len(message)
        return bytes([number]) + head.replace(b"Content-Length: %d\r\n" % len(body), length) + end + message

    def run(data: bytes) -> bool:
        number = data[0] % len(examples) if data else 0
        dtype = (np.float32, np.uint16)[number // 2 % 2]
        output = np.zeros(SHAPES[number // 4], dtype)
        return _is_read(data[1:], PROOF.encode() if number % 2 else b"", output)

    yield Target(make, run)


def answer(shape: tuple[int, int], dtype: Any, proof: str) -> bytes:
    """A plain answer, as a function sends it."""
    values = np.arange(shape[0] * shape[1]).reshape(shape).astype(dtype)
    result = InvocationResult(values, "0123456789abcdef", "127.0.0.1:8080", 0.25, 2)
    response = FunctionResponse(body=result.encode(), content_type=CONTENT_TYPE, proof=proof)
    return b"".join(response.encode(keep_alive=True))


def _is_read(data: bytes, proof: bytes, output: np.ndarray) -> bool:
    """Send the data in pieces as the peer; returns whether they are a plain answer."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        # What does not fit the socket's buffer could not be sent before somebody reads.
        data = data[:100_000]
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        (outcome,) = _plain_calls.receive(5.0, [(ours.fileno(), proof, output)])
        rest = b"".join(iter(lambda: ours.recv(65536), b""))
    if isinstance(outcome, bytes):
        if outcome + rest != data:
            raise Misbehaviour("bytes were lost")
        return False
    # Whoever uses the connection next sees that there is more on it, and closes it.
    _check_alike(data[: len(data) - len(rest)], proof, output, outcome)
    return True


def _check_alike(data: bytes, proof: bytes, output: np.ndarray, outcome: tuple[Any, ...]) -> None:
    reader = ResponseReader(1 << 20)
    reader.take(memoryview(data))
    response = reader.response
    reader.close()
    if response is None or response.status != 200 or (proof and response.proof != proof):
        raise Misbehaviour(f"the reader in Python has {response}")
    result = InvocationResult.decode(response.body)
    found = result.instance, result.address, result.seconds, result.cold_experts, len(response.body)
    if found != tuple(outcome) or result.residency is not None or not reader.keep_alive:
        raise Misbehaviour(f"{found} is read as {outcome}")
    if result.output.dtype != output.dtype or result.output.tobytes() != output.tobytes():
        raise Misbehaviour("another output was read")


@contextmanager
def row_groups(folder: Path) -> Iterator[Target]:
    """The C functions that group rows and add up outputs, with arguments that nearly fit."""

    def call(arguments: Arguments) -> None:
        arguments.choice((_group, _add_up))(arguments)

    yield target_of(call, odd_layouts=0.02, faults=0.01)


def _group(arguments: Arguments) -> None:
    choice = arguments.choice
    rows, top_k, experts, size = choice((0, 1, 2, 9)), choice((0, 1, 3)), choice((0, 1, 5)), choice((1, 8))
    places = rows * top_k
    _row_groups.group(
        _size(arguments, rows),
        _size(arguments, top_k),
        _size(arguments, 2 * size),
        arguments.indices((experts,), np.int32, 3),
        arguments.indices((rows, top_k), np.int16, experts),
        arguments.array((rows, top_k), np.float32),
        arguments.array((rows, size), np.uint16),
        arguments.array((places,), np.int64),
        arguments.array((places, top_k), np.int16),
        arguments.array((places, top_k), np.float32),
        arguments.array((places, size), np.uint16),
    )


def _add_up(arguments: Arguments) -> None:
    choice = arguments.choice
    rows, size, dtype = choice((0, 1, 9)), choice((1, 8)), choice((np.float32, np.uint16))
    parts = []
    for _ in range(choice((0, 1, 3))):
        count = choice((0, 1, rows))
        some = choice((None, arguments.indices((count,), np.int64, rows)))
        parts.append((some, arguments.array((rows if some is None else count, size), dtype)))
    _row_groups.add_up(
        _size(arguments, rows),
        _size(arguments, size),
        dtype == np.uint16,
        tuple(parts),
        arguments.array((rows, size), dtype),
    )


def _size(arguments: Arguments, size: int) -> int:
    return int(arguments.choice((-1, size + 1, 2**24 + 1, 2**31, 2**62))) if arguments.is_wrong() else size
