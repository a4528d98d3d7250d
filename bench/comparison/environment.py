"""The machine and the software versions of a run, as its results record them."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

CHECKOUT = Path(__file__).parents[2]


def machine() -> dict[str, Any]:
    """Processor, number of usable cores, memory, and operating system."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": f"{psutil.virtual_memory().total / 1e9:.1f} GB",
        "system": platform.platform(terse=True),
    }


def versions() -> dict[str, str]:
    """Versions of FaaSMoE and of what its speed depends on."""
    return {
        "commit": commit(CHECKOUT),
        "python": platform.python_version(),
        **{name: version(name) for name in ("faasmoe", "torch", "transformers")},
    }


def commit(checkout: Path) -> str:
    """The commit of a git checkout; "unknown" for an installed package, or without git."""
    # An installed package can lie inside another project's checkout, whose commit git would report.
    if not (checkout / ".git").exists():
        return "unknown"
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=checkout,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return "unknown"
    return described.stdout.strip() or "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
