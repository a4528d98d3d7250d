"""Which of the kernels that a machine runs is used."""

import os
from collections.abc import Sequence

KERNEL_VARIABLE = "FAASMOE_KERNEL"
"""The environment variable that names the kernel of a process. Without it, the fastest is used."""


def selected(available: Sequence[str], name: str | None) -> str:
    """`name`, or the kernel that the environment names, or the first of those that the machine runs.

    Raises ValueError for a kernel that it does not run.
    """
    chosen = name or os.environ.get(KERNEL_VARIABLE) or available[0]
    if chosen not in available:
        raise ValueError(f"no kernel {chosen[:40]!r} here, only {', '.join(available)}")
    return chosen
