"""How much memory this process may use: what the machine has, or its control groups allow."""

import os
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
