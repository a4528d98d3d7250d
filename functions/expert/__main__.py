"""Runs an expert function: `python -m functions.expert`, configured by the environment.

FAASMOE_FUNCTION    the function's name in the partition's manifest (required)
FAASMOE_PARTITION   the partition's folder (default: /home/app/partition, its place in the image)
FAASMOE_HOST        the address to bind (default: 127.0.0.1; the image sets 0.0.0.0)
FAASMOE_PORT        the port to bind (default: 8080)
FAASMOE_THREADS     compute threads of one invocation, 64 at most (default: the cores, shared with the
                    other functions of its layers)
FAASMOE_IDLE_EXIT   seconds without an invocation after which the process ends, for gateways that start
                    functions again when they are called (default: never)
FAASMOE_LISTEN_FD   a listening socket inherited from a supervisor, instead of host and port; the function
                    then also ends when its standard input does, so that it never outlives the supervisor
"""

import os
import signal
import sys
import threading
import time

from functions.contract.process import MAX_BODY_BYTES
from functions.expert.expert_block import BlockError, ExpertBlock
from functions.expert.expert_function import ExpertFunction
from functions.expert.http_server import HttpServer
from functions.expert.settings import FunctionSettings
from functions.host.memory import return_large_buffers
from functions.host.threads import take_short_slices
from functions.kernels import load_kernel

MAX_IN_FLIGHT = 32
"""Invocations that a function takes at once; it refuses more."""
DRAIN_SECONDS = 10.0
"""How long the calls in flight may take once the function is to end."""


def main() -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    try:
        settings = FunctionSettings.from_environment(os.environ)
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
    # Already now, so that health and readiness are answered while the block is being opened.
    serving = threading.Thread(target=server.serve, args=(DRAIN_SECONDS,), daemon=True)
    serving.start()
    try:
        block = ExpertBlock.open(
            settings.partition, settings.function, load_kernel(), settings.threads, on_replaced=server.stop
        )
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
    """Stop the server at SIGTERM or SIGINT.

    A thread waits for them, since a handler may never run: Python runs handlers on the main thread only, and
    nothing wakes that one when the kernel delivers the signal to another thread.
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
