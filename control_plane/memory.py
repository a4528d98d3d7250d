"""What this process uses of memory, and what machine and control group allow."""

import ctypes
import mmap
import re
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")

_KIB = 1024
_NO_LIMIT = 1 << 60
"""Version 1 of control groups writes "none" as a number just below 2^63."""
_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ *(.*)")


@dataclass(frozen=True)
class MemoryLimit:
    """The most that this process and its kin may use, and who says so."""

    nbytes: int
    source: str


def used_bytes(proc: Path = _PROC) -> int:
    """This process's proportional set size: its own memory, and its part of what it shares.

    The kernel looks at each page for it, which takes milliseconds for each gigabyte.
    """
    rollup = (proc / "self" / "smaps_rollup").read_text()
    return _field(rollup, "Pss") * _KIB


@dataclass(frozen=True)
class OwnMemory:
    """Follows what this process uses at no cost: the kernel counts resident pages anyway."""

    shared: int
    """Bytes of those that are others', as far as they share them."""

    @classmethod
    def measure(cls) -> "OwnMemory":
        """Look at each page, once."""
        return cls(max(_resident_bytes() - used_bytes(), 0))

    def used(self) -> int:
        """As `used_bytes`, if as much is shared as at first."""
        return _resident_bytes() - self.shared


def unread_bytes(file: Path, proc: Path = _PROC) -> int:
    """How much of a file this process has mapped and not read yet; 0 when it has not mapped it."""
    unread, ours = 0, False
    wanted = str(file.resolve())
    with (proc / "self" / "smaps").open() as lines:
        for line in lines:
            if mapping := _MAPPING.match(line):
                ours = mapping[1].rstrip("\n") == wanted
            elif ours and line.startswith("Size:"):
                unread += int(line.split()[1])
            elif ours and line.startswith("Rss:"):
                unread -= int(line.split()[1])
    return unread * _KIB


def memory_limit(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> MemoryLimit:
    """The least of the machine's memory and the limits of this process's control groups, v1 or v2."""
    machine = _field((proc / "meminfo").read_text(), "MemTotal") * _KIB
    limits = [MemoryLimit(machine, "this machine")]
    for file in _limit_files((proc / "self" / "cgroup").read_text(), cgroups):
        try:
            text = file.read_text().strip()
        except OSError:
            continue
        if text.isdecimal() and int(text) < _NO_LIMIT:
            limits.append(MemoryLimit(int(text), f"the control group, by {file},"))
    return min(limits, key=lambda limit: limit.nbytes)


def give_back() -> None:
    """Give the kernel what the heap holds and does not use, where the C library can (glibc's)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _resident_bytes() -> int:
    return int((_PROC / "self" / "statm").read_text().split()[1]) * mmap.PAGESIZE


def _limit_files(membership: str, cgroups: Path) -> list[Path]:
    """Where the limits of a process's groups are, and of those that these are in.

    Seen from inside a container the outer names may lead nowhere: then the root is the container's own.
    """
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


def _field(text: str, name: str) -> int:
    """The number behind a name, as /proc writes it; 0 where there is none."""
    match = re.search(rf"^{name}: +(\d+)", text, re.MULTILINE)
    return int(match[1]) if match else 0
