"""The process that encodes prompts for the control plane, which can end it at any time.

It reads a `Setup` and then requests from standard input, and writes an answer to each to standard output.
It ends when its input does, so with the control plane. While it answers, the kernel's timer ends it.
"""

import os
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import msgspec

from control_plane.api.text.worker.encoder import Encoder
from control_plane.api.text.worker.messages import LENGTH_BYTES, Answer, Request, Setup, Tokens
from control_plane.autoscaling.process_memory import trim_heap

_LARGE_BYTES = 16 << 10


def main() -> None:
    """Answer requests until there are no more."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    if (body := _body(requests)) is None:
        return
    setup = msgspec.msgpack.decode(body, type=Setup)
    encoder = Encoder(setup)
    memory_bytes, orphan_seconds = setup.memory_bytes, setup.orphan_seconds
    # Parsing a large vocabulary takes three times the memory that it has afterwards.
    del body, setup
    trim_heap()
    _limit(memory_bytes)
    # An answer without tokens says that the process is ready.
    _write(answers, Tokens(b""))
    decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
    while (body := _body(requests)) is not None:
        signal.alarm(orphan_seconds)
        answer = encoder.answer(decoder.decode(body))
        _write(answers, answer)
        signal.alarm(0)
        if isinstance(answer, Tokens) and len(answer.ids) > _LARGE_BYTES:
            # A long prompt leaves hundreds of megabytes with the C library.
            trim_heap()


def _limit(memory_bytes: int) -> None:
    """Allow that much more memory, and no core dumps."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for limit, most in ((resource.RLIMIT_AS, used + memory_bytes), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(limit, (most, most))
    # Where memory runs out, the system ends this process rather than the control plane.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _body(stream: BinaryIO) -> bytes | None:
    """The next frame's message; None at the end of the input."""
    head = stream.read(LENGTH_BYTES)
    if len(head) < LENGTH_BYTES:
        return None
    length = int.from_bytes(head, "little")
    body = stream.read(length)
    return body if len(body) == length else None


def _write(stream: BinaryIO, answer: Answer) -> None:
    body = msgspec.msgpack.encode(answer)
    stream.write(len(body).to_bytes(LENGTH_BYTES, "little") + body)
    stream.flush()


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:
        # The control plane has gone; there is nobody to tell.
        os._exit(0)
