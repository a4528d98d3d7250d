"""Builds everything into a folder of its own, with the C extensions checked at run time by GCC's sanitizers.

AddressSanitizer ends the process at an access outside of an allocation, UndefinedBehaviorSanitizer at an
overflow, a shift or an unaligned access that C does not define. Python itself is not built with them, so
their libraries are loaded before it.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from control_plane.errors import ConfigError

CHECKS = "-fsanitize=address,undefined"
_COMPILE = f"{CHECKS} -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g"
_LIBRARIES = ("libasan.so", "libubsan.so")
_MOST_MB = 2048
"""The most megabytes of one allocation: an input that asks for more gets a MemoryError."""
_ADDRESS_OPTIONS = {
    "detect_leaks": 0,
    # By default, freed memory and the stacks of its allocations are kept: memory would seem to grow.
    "quarantine_size_mb": 1,
    "thread_local_quarantine_size_kb": 64,
    "malloc_context_size": 4,
    "max_allocation_size_mb": _MOST_MB,
    "allocator_may_return_null": 1,
    # Python's own fault handler says where a worker hangs.
    "handle_abort": 0,
}
_OPTIONS = {
    "ASAN_OPTIONS": ":".join(f"{name}={value}" for name, value in _ADDRESS_OPTIONS.items()),
    "UBSAN_OPTIONS": "print_stacktrace=1",
    # Python's own allocator would hide accesses past the end of a small buffer.
    "PYTHONMALLOC": "malloc",
}


def build(root: Path) -> Path:
    """Build the checkout at `root`; returns the folder to import from. Raises `ConfigError`."""
    base = root / "build" / "sanitized"
    folders = ("--build-base", str(base), "--build-lib", str(base / "lib"))
    command = (sys.executable, "setup.py", "-q", "build", *folders)
    flags = {"CFLAGS": _COMPILE, "LDFLAGS": CHECKS}
    built = subprocess.run(command, cwd=root, env={**os.environ, **flags}, capture_output=True, text=True)
    # The extensions are optional to setup.py.
    if built.returncode or len(list(base.glob("lib/**/*.so"))) < _extensions(root):
        raise ConfigError(f"cannot build the extensions with {CHECKS}: {built.stderr[-2000:]}")
    return base / "lib"


def _extensions(root: Path) -> int:
    """How many extensions there are: each has one source file."""
    return sum(1 for package in ("functions", "control_plane") for _ in root.glob(f"{package}/**/csrc/*.c"))


def environment() -> Mapping[str, str]:
    """The environment of Python processes that run in the folder that `build` has made.

    They import from their working folder, and not from PYTHONPATH: functions of the embedded gateway inherit
    that, but not the libraries, and run with the extensions of the checkout.
    """
    return {**os.environ, **_OPTIONS, "LD_PRELOAD": " ".join(map(_path_of, _LIBRARIES))}


def _path_of(library: str) -> str:
    command = (os.environ.get("CC", "gcc"), f"-print-file-name={library}")
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
