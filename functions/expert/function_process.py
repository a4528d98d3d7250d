"""A function's process: it serves its block until it is told to end, or is no longer needed."""

import os
import signal
import sys
import threading
import time

from functions.contract.process import MAX_BODY_BYTES
from functions.expert.expert_block import BlockError, ExpertBlock
from functions.expert.expert_function import ExpertFunction
from functions.expert.fast_calls import fast_path
from functions.expert.settings import FunctionSettings
from functions.host.memory import return_large_buffers
from functions.host.open_files import need_open_files
from functions.host.supervisor import die_with_parent
from functions.host.threads import take_short_slices
from functions.http.server import MAX_CONNECTIONS, HttpServer
from functions.kernels import load_kernel

MAX_IN_FLIGHT = 32
"""Invocations that a function takes at once; it refuses more."""
OTHER_FILES = 64
"""Files that a function may have open besides its connections."""
DRAIN_SECONDS = 10.0
"""How long the calls in flight may take once the function is to end."""


def run() -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    try:
        settings = FunctionSettings.from_environment(os.environ)
        need_open_files(MAX_CONNECTIONS + OTHER_FILES)
        authentication = settings.authentication()
        kernel = load_kernel()
        listener = settings.listener()
    except (ValueError, OSError) as error:
        print(f"cannot start: {error}", file=sys.stderr)
        return 1
    take_short_slices()
    return_large_buffers()
    function = ExpertFunction(MAX_IN_FLIGHT, authentication)
    server = HttpServer(listener, function, MAX_BODY_BYTES)
    _stop_at_signals(server, function)
    if settings.listen_fd is not None:
        die_with_parent()
        threading.Thread(target=_end_with_supervisor, daemon=True).start()
    # Already now, so that health and readiness are answered while the block is being opened.
    serving = threading.Thread(target=server.serve, args=(DRAIN_SECONDS,), daemon=True)
    serving.start()
    try:
        block = ExpertBlock.open(
            settings.partition, settings.function, kernel, settings.threads, on_replaced=server.stop
        )
    except BlockError as error:
        print(f"cannot start: {error}", file=sys.stderr)
        return 1
    function.opened(block)
    server.leaves_client_core = block.fits_beside_client
    server.fast_path = fast_path(function, block, server.connections)
    print(
        f"serving {settings.function} with the {block.kernel.name} kernel, "
        f"{block.threads} threads, {block.num_experts} experts",
        flush=True,
    )
    if block.kernel.name == "numpy":
        print("warning: computing with NumPy, which is many times slower than with the code in C", flush=True)
    if settings.idle_exit is not None:
        arguments = (function, server, settings.idle_exit)
        threading.Thread(target=_end_when_idle, args=arguments, daemon=True).start()
    serving.join()
    return 0


def _stop_at_signals(server: HttpServer, function: ExpertFunction) -> None:
    """Stop the server at SIGTERM or SIGINT; while the function has no block yet, end the process.

    A thread waits for them, since a handler may never run: Python runs handlers on the main thread only, and
    nothing wakes that one when the kernel delivers the signal to another thread.
    """
    arrived, arrival = os.pipe()
    os.set_blocking(arrival, False)
    signal.set_wakeup_fd(arrival)
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda *_: None)
    threading.Thread(target=_stop_after_byte, args=(arrived, server, function), daemon=True).start()


def _stop_after_byte(pipe: int, server: HttpServer, function: ExpertFunction) -> None:
    os.read(pipe, 1)
    if function.block is None:
        # The main thread may wait for a slow disk, and no call that anybody needs is in flight.
        os._exit(0)
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
