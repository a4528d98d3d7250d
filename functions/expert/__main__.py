"""Runs an expert function: `python -m functions.expert`, configured by the environment.

FAASMOE_FUNCTION    the function's name in the partition's manifest (required)
FAASMOE_PARTITION   the partition's folder (default: /home/app/partition, its place in the image)
FAASMOE_HOST        the address to bind (default: 127.0.0.1; the image sets 0.0.0.0)
FAASMOE_SECRETS     the folder with the file faasmoe-functions, the secret that callers need
                    (default: /var/openfaas/secrets, where OpenFaaS mounts it)
FAASMOE_OPEN        1 to bind other addresses than loopback without the secret
FAASMOE_PORT        the port to bind (default: 8080)
FAASMOE_THREADS     compute threads of one invocation, 64 at most (default: the cores, shared with the
                    other functions of its layers)
FAASMOE_KERNEL      the kernel to compute with, such as avx2 or numpy (default: the fastest here)
FAASMOE_IDLE_EXIT   seconds without an invocation after which the process ends, for gateways that start
                    functions again when they are called (default: never)
FAASMOE_LISTEN_FD   a listening socket inherited from a supervisor, instead of host and port; the function
                    then also ends when its standard input does, so that it never outlives the supervisor
"""

import os
import signal
import sys

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def main() -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    # Before anything that takes long to import. In a container this is process 1, which gets no signal that
    # it has no handler for, so its supervisor would wait half a minute before it kills it.
    for signal_number in _SIGNALS:
        signal.signal(signal_number, lambda *_: os._exit(0))
    from functions.expert.function_process import run

    code = run()
    # While it exits, Python removes its handlers, and another signal would change the exit status.
    for signal_number in _SIGNALS:
        signal.signal(signal_number, signal.SIG_IGN)
    return code


if __name__ == "__main__":
    sys.exit(main())
