"""Memory: what this process may use, what it uses, and how its C library returns it to the system."""

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from functions.host.c_library import C_LIBRARY

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")

_PAGE_NBYTES = os.sysconf("SC_PAGE_SIZE")
_NO_LIMIT = 1 << 60
"""Version 1 of control groups writes "no limit" as a number just below 2^63."""

MMAP_THRESHOLD = -3
"""M_MMAP_THRESHOLD of mallopt(3): setting it also keeps glibc from raising it."""
MMAP_BYTES = 256 << 10
"""Buffers from this size on are mapped. A decoding step's rows stay below it even for many sequences; a
prompt's are above, and take much longer to compute than the page faults of a new mapping."""


@dataclass(frozen=True)
class MemoryLimit:
    """The most memory that this process may use, and where the limit comes from."""

    nbytes: int
    source: str


def machine_memory() -> int:
    """Bytes of memory that the machine has."""
    return os.sysconf("SC_PHYS_PAGES") * _PAGE_NBYTES


def memory_limit(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> MemoryLimit:
    """The least of the machine's memory and the limits of this process's control groups, v1 or v2."""
    limits = [MemoryLimit(machine_memory(), "this machine")]
    for file in _limit_files(proc, cgroups):
        try:
            text = file.read_text().strip()
        except OSError:
            continue
        if text.isdecimal() and int(text) < _NO_LIMIT:
            limits.append(MemoryLimit(int(text), f"the control group, by {file},"))
    return min(limits, key=lambda limit: limit.nbytes)


def _limit_files(proc: Path, cgroups: Path) -> list[Path]:
    """The files with the limits of the process's control groups and of the groups around them.

    Inside a container, paths that are valid outside may not exist: then the root is the container's group.
    """
    try:
        membership = (proc / "self" / "cgroup").read_text()
    except OSError:
        return []
    files = []
    for line in membership.splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            folder, name = cgroups, "memory.max"
        elif "memory" in controllers.split(","):
            folder, name = cgroups / "memory", "memory.limit_in_bytes"
        else:
            continue
        path = Path(group.lstrip("/"))
        files += [folder / part / name for part in (path, *path.parents)]
    return files


class ProcessMemory:
    """Measures this process's own memory, fast enough for every call; 0 where there is no /proc.

    Memory that it shares with other processes counts in part: mapped files, and what a forked process has not
    written to. To measure that takes long, and it hardly changes after a while: a process that was forked
    writes to most pages that it ever does soon. So it is done after one second, two, four and so on.
    """

    def __init__(self) -> None:
        self._rest = 0
        """Proportional set size less anonymous memory: mapped files, less what others have of the latter."""
        self._measure_at = self._pause = 0.0
        try:
            self._statm = os.open("/proc/self/statm", os.O_RDONLY)
        except OSError:
            self._statm = -1

    def nbytes(self) -> int:
        """Anonymous memory now, plus the rest of the proportional set size when that was last measured."""
        if self._statm < 0:
            return 0
        resident, shared = map(int, os.pread(self._statm, 256, 0).split()[1:3])
        anonymous = (resident - shared) * _PAGE_NBYTES
        if time.monotonic() >= self._measure_at:
            self._measure(anonymous)
        return anonymous + self._rest

    def close(self) -> None:
        """Close the file; `nbytes` is 0 from now on."""
        if self._statm >= 0:
            os.close(self._statm)
            self._statm = -1

    def _measure(self, anonymous: int) -> None:
        self._pause = 2 * self._pause or 1.0
        self._measure_at = time.monotonic() + self._pause
        with contextlib.suppress(OSError):
            self._rest = memory_sizes().get("Pss", anonymous) - anonymous


def memory_sizes(process: int | str = "self") -> dict[str, int]:
    """The sums over a process's mappings in smaps_rollup (proc(5)), in bytes: "Pss", "Rss" and others.

    The kernel visits each page for it, which takes milliseconds per gigabyte. Raises OSError.
    """
    # The first line has the addresses.
    lines = (_PROC / str(process) / "smaps_rollup").read_text().splitlines()[1:]
    return {name[:-1]: int(kilobytes) << 10 for name, kilobytes, _ in map(str.split, lines)}


def return_large_buffers() -> None:
    """Have glibc return large buffers to the system as soon as they are freed; other C libraries do nothing.

    Otherwise each thread keeps the memory that its longest prompt has needed: some ten megabytes a function.
    """
    mallopt = getattr(C_LIBRARY, "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, MMAP_BYTES)
