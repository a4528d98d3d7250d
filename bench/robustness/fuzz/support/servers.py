"""Starts the servers that targets send their inputs to, and sends them."""

import asyncio
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import TypeVar

from bench.robustness.fuzz.support.target import Misbehaviour
from control_plane.faas.connection import Address
from functions.contract.process import (
    FUNCTION_VARIABLE,
    LISTEN_FD_VARIABLE,
    PARTITION_VARIABLE,
    THREADS_VARIABLE,
)

Entered = TypeVar("Entered")

SECONDS = 30.0
"""The longest pause in an answer."""
_RECEIVE_BYTES = 65536
_HEAD = re.compile(rb"HTTP/1\.[01] (\d{3})\b.*?\r\n\r\n", re.DOTALL)
_LENGTH = re.compile(rb"\r\nContent-Length: (\d+)\r\n", re.IGNORECASE)


@contextmanager
def entered(context: AbstractAsyncContextManager[Entered]) -> Iterator[Entered]:
    """Enter an async context in code that is not async."""
    with asyncio.Runner() as runner:

        async def enter() -> Entered:
            return await context.__aenter__()

        async def leave() -> None:
            await context.__aexit__(None, None, None)

        value = runner.run(enter())
        try:
            yield value
        finally:
            runner.run(leave())


@contextmanager
def function_process(partition: Path, function: str) -> Iterator[Address]:
    """Run a function as a gateway does, on a socket that it inherits; it ends with its standard input."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = subprocess.Popen(
            [sys.executable, "-m", "functions.expert"],
            env={
                **os.environ,
                FUNCTION_VARIABLE: function,
                PARTITION_VARIABLE: str(partition),
                THREADS_VARIABLE: "1",
                LISTEN_FD_VARIABLE: str(listener.fileno()),
            },
            pass_fds=(listener.fileno(),),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        address = Address("127.0.0.1", listener.getsockname()[1])
    with process:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise Misbehaviour("the function did not start")
        yield address


def exchange(address: Address, data: bytes, half_close: bool = False) -> bytes:
    """Send all bytes over a new connection, and receive until the peer closes it. Raises `TimeoutError`.

    With `half_close`, the peer sees that no more bytes will come, as it must where a request may be cut off.
    """
    with socket.create_connection((address.host, address.port), SECONDS) as connection:
        received = bytearray()
        try:
            connection.sendall(data)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(_RECEIVE_BYTES):
                received += piece
        except (BrokenPipeError, ConnectionResetError):
            pass  # The peer has refused the rest.
        return bytes(received)


def statuses(received: bytes) -> list[int]:
    """The statuses of the responses in the bytes of a connection; bodies are skipped by their lengths.

    Raises `Misbehaviour` for a status of the server's own faults.
    """
    position, found = 0, []
    while head := _HEAD.match(received, position):
        status, length = int(head[1]), _LENGTH.search(head[0])
        if status >= 500:
            raise Misbehaviour(received[position : position + 1000].decode(errors="replace"))
        found.append(status)
        position = head.end() + (int(length[1]) if length else 0)
    return found


def ask(address: Address, request: bytes) -> bool:
    """Send a request; returns whether its response is a success. Raises `Misbehaviour` if there is none."""
    found = statuses(exchange(address, request))
    if not found:
        raise Misbehaviour("no answer")
    return found[0] < 400
