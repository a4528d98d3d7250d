"""A function's process as its supervisor and callers see it: environment variables, port, paths, limits."""

FUNCTION_VARIABLE = "FAASMOE_FUNCTION"
"""Names the function, and so its block in the manifest: the only setting that differs between functions."""
PARTITION_VARIABLE = "FAASMOE_PARTITION"
HOST_VARIABLE = "FAASMOE_HOST"
PORT_VARIABLE = "FAASMOE_PORT"
THREADS_VARIABLE = "FAASMOE_THREADS"
IDLE_EXIT_VARIABLE = "FAASMOE_IDLE_EXIT"
"""Seconds without an invocation after which the process ends by itself."""
LISTEN_FD_VARIABLE = "FAASMOE_LISTEN_FD"
"""The number of a listening socket that the process inherits from its supervisor."""

DEFAULT_PORT = 8080
"""The port on which OpenFaaS calls a function without a watchdog."""

HEALTH_PATH = "/_/health"
READY_PATH = "/_/ready"
METRICS_PATH = "/metrics"
RESIDENCY_PATH = "/_/residency"

MAX_BODY_BYTES = 64 << 20
"""The largest body that a function accepts."""

UNKNOWN_EXPERT = "unknown_expert"
"""The error code of a 404 from a function that exists but lacks an expert; any other 404 is the gateway's."""
