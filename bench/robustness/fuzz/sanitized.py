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
_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:quarantine_size_mb=16:allocator_may_return_null=1:handle_abort=0"
    f":max_allocation_size_mb={_MOST_MB}",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


def build(root: Path) -> Path:
    """Build the checkout at `root`; returns the folder to import from. Raises `ConfigError`."""
    base = root / "build" / "sanitized"
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "build",
        "--build-base",
        str(base),
        "--build-lib",
        str(base / "lib"),
    ]
    environment = {**os.environ, "CFLAGS": _COMPILE, "LDFLAGS": CHECKS}
    built = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    # The extensions are optional to setup.py.
    if built.returncode or len(list(base.glob("lib/**/*.so"))) < 2:
        raise ConfigError(f"cannot build the extensions with {CHECKS}: {built.stderr[-2000:]}")
    return base / "lib"


def environment(folder: Path) -> Mapping[str, str]:
    """The environment of a Python process that imports from `folder`, which `build` has made."""
    compiler = os.environ.get("CC", "gcc")
    libraries = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in _LIBRARIES
    ]
    return {**os.environ, **_OPTIONS, "PYTHONPATH": str(folder), "LD_PRELOAD": " ".join(libraries)}
