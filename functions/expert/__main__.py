"""Runs an expert function: `python -m functions.expert`, configured by the environment.

FAASMOE_FUNCTION    the function's name in the partition's manifest (required)
FAASMOE_PARTITION   the partition's folder (default: /home/app/partition, where the image has it)
FAASMOE_HOST        the address to bind (default: 127.0.0.1; the image sets 0.0.0.0)
FAASMOE_PORT        the port to bind (default: 8080)
FAASMOE_THREADS     compute threads of one invocation, 64 at most (default: the cores, shared with the
                    other functions of its layers)
FAASMOE_IDLE_EXIT   seconds without an invocation after which the process ends, for gateways that start one
                    again with the next call (default: never)
FAASMOE_LISTEN_FD   a listening socket inherited from a supervisor, instead of host and port; the function
                    then also ends when its standard input does, so that it never outlives the supervisor
"""

import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from functions.expert.expert_block import MAX_THREADS, BlockError, ExpertBlock
from functions.expert.http import HttpServer
from functions.expert.server import ExpertFunction
from functions.host.memory import return_large_buffers
from functions.host.threads import take_short_slices
from functions.kernels import load_kernel

MAX_BODY_BYTES = 64 << 20
MAX_IN_FLIGHT = 32
DRAIN_SECONDS = 10.0


@dataclass(frozen=True)
class Settings:
    """The function's configuration."""

    function: str
    partition: Path
    host: str
    port: int
    threads: int | None
    listen_fd: int | None
    idle_exit: int | None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Raises `ValueError` naming the variable that is missing or not a number in its range."""
        if not environment.get("FAASMOE_FUNCTION"):
            raise ValueError("FAASMOE_FUNCTION is not set")
        return cls(
            function=environment["FAASMOE_FUNCTION"],
            partition=Path(environment.get("FAASMOE_PARTITION", "/home/app/partition")),
            host=environment.get("FAASMOE_HOST", "127.0.0.1"),
            port=_number(environment, "FAASMOE_PORT", 65535) or 8080,
            threads=_number(environment, "FAASMOE_THREADS", MAX_THREADS),
            listen_fd=_number(environment, "FAASMOE_LISTEN_FD", 1 << 30),
            idle_exit=_number(environment, "FAASMOE_IDLE_EXIT", 1 << 30),
        )

    def listener(self) -> socket.socket:
        """The listening socket: the supervisor's, or a new one."""
        if self.listen_fd is not None:
            return socket.socket(fileno=self.listen_fd)
        return socket.create_server((self.host, self.port), backlog=128)


def _number(environment: Mapping[str, str], name: str, largest: int) -> int | None:
    """A variable's value from 1 to `largest`, or None where it is not set."""
    text = environment.get(name)
    if text is None:
        return None
    if not re.fullmatch("[0-9]{1,10}", text) or not 1 <= int(text) <= largest:
        raise ValueError(f"{name} is {text!r}, not a number from 1 to {largest}")
    return int(text)


def main() -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    try:
        settings = Settings.from_environment(os.environ)
        listener = settings.listener()
    except (ValueError, OSError) as error:
        print(f"cannot start: {error}", file=sys.stderr)
        return 1
    take_short_slices()
    return_large_buffers()
    function = ExpertFunction(MAX_IN_FLIGHT)
    server = HttpServer(listener, function, MAX_BODY_BYTES)
    _stop_at_signals(server)
    if settings.listen_fd is not None:
        threading.Thread(target=_end_with_supervisor, daemon=True).start()
    # Health and readiness are answered while the block is being opened.
    serving = threading.Thread(target=server.serve, args=(DRAIN_SECONDS,), daemon=True)
    serving.start()
    try:
        block = ExpertBlock.open(settings.partition, settings.function, load_kernel(), settings.threads)
    except BlockError as error:
        print(f"cannot start: {error}", file=sys.stderr)
        return 1
    function.opened(block)
    server.leaves_client_core = block.fits_beside_client
    print(
        f"serving {settings.function} with the {block.kernel.name} kernel, "
        f"{block.threads} threads, {block.num_experts} experts",
        flush=True,
    )
    if settings.idle_exit is not None:
        arguments = (function, server, settings.idle_exit)
        threading.Thread(target=_end_when_idle, args=arguments, daemon=True).start()
    serving.join()
    return 0


def _stop_at_signals(server: HttpServer) -> None:
    """Have SIGTERM and SIGINT stop the server.

    A thread waits for them, not a handler: the kernel may hand a signal to any thread, for example one that
    just starts another, and then nothing wakes the main thread, the only one to run Python's handlers.
    """
    arrived, arrival = os.pipe()
    os.set_blocking(arrival, False)
    signal.set_wakeup_fd(arrival)
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda *_: None)
    threading.Thread(target=_stop_after_byte, args=(arrived, server), daemon=True).start()


def _stop_after_byte(pipe: int, server: HttpServer) -> None:
    os.read(pipe, 1)
    server.stop()


def _end_when_idle(function: ExpertFunction, server: HttpServer, seconds: float) -> None:
    while (left := seconds - function.idle_seconds) > 0:
        time.sleep(left)
    print(f"ending after {seconds:g} s without an invocation", flush=True)
    server.stop()


def _end_with_supervisor() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
