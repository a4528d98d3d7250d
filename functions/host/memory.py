"""The memory that a process may use, has, and gives back.

How much memory this process may use: what the machine has, or its control groups allow.

How much memory this process has of its own, cheaply enough to tell with every answer.

Has glibc give large buffers back to the system as soon as they are free.

Otherwise each thread keeps what the longest prompt has ever needed, some ten megabytes in each function.
"""

import ctypes
import os
import re
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")

_NO_LIMIT = 1 << 60
"""Version 1 of control groups writes "none" as a number just below 2^63."""


@dataclass(frozen=True)
class MemoryLimit:
    """The most that this process and its kin may use, and who says so."""

    nbytes: int
    source: str


def machine_memory() -> int:
    """Bytes of memory that the machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


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
    """Where the limits of a process's groups are, and of those that these are in.

    Seen from inside a container the outer names may lead nowhere: then the root is the container's own.
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


_PAGE_NBYTES = os.sysconf("SC_PAGE_SIZE")


class ProcessMemory:
    """Reads /proc; where there is none, everything is zero."""

    def __init__(self) -> None:
        self._files_nbytes = _files_share()
        try:
            self._statm = os.open("/proc/self/statm", os.O_RDONLY)
        except OSError:
            self._statm = -1

    def nbytes(self) -> int:
        """Anonymous memory now, and this process's share of the mapped files that it had at the start."""
        if self._statm < 0:
            return 0
        resident, shared = map(int, os.pread(self._statm, 256, 0).split()[1:3])
        return self._files_nbytes + (resident - shared) * _PAGE_NBYTES

    def close(self) -> None:
        """Let the file go."""
        if self._statm >= 0:
            os.close(self._statm)
            self._statm = -1


def _files_share() -> int:
    """Proportional, in bytes: what several functions map counts once over all of them."""
    try:
        text = Path("/proc/self/smaps_rollup").read_text()
    except OSError:
        return 0
    sizes = {name: int(kilobytes) << 10 for name, kilobytes in re.findall(r"^(\w+): +(\d+) kB$", text, re.M)}
    return sizes.get("Pss", 0) - sizes.get("Pss_Anon", 0)


MMAP_THRESHOLD = -3
"""M_MMAP_THRESHOLD of mallopt(3). Set, it no longer grows by itself."""
MMAP_BYTES = 256 << 10
"""A step's rows of many sequences that generate stay below it; those of prompts, whose computing takes longer
by far than a few page faults, are above."""


def return_large_buffers() -> None:
    """For all that is allocated from now on; where the C library is not glibc, nothing happens."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, MMAP_BYTES)
