"""Measures in about a second what this machine reads: memory, and the disk that has a model's weights."""

import os
from collections.abc import Sequence
from pathlib import Path

from control_plane.errors import ConfigError
from control_plane.inspection.bandwidth import disk_bandwidth, memory_bandwidth
from control_plane.inspection.report import Machine
from functions.host.memory import memory_limit

_PROCESSES = 16
"""So many read as much as the memory of any machine gives."""
_NBYTES = 128 << 20
"""What each of them reads; together more than caches hold."""
_DISK_SECONDS = 0.7


def measured(weights: Sequence[Path]) -> Machine:
    """Measure. Without weights, the disk is not. Raises FaaSMoEError if it takes over a minute."""
    processes = min(len(os.sched_getaffinity(0)), _PROCESSES)
    memory = memory_bandwidth(processes, _NBYTES)
    return Machine(memory_limit().nbytes, memory, _disk(weights) if weights else None)


def _disk(weights: Sequence[Path]) -> float | None:
    try:
        return disk_bandwidth(weights, _DISK_SECONDS) or None
    except ConfigError:
        # Not every file system has reads past the page cache, or it is in memory.
        return None
