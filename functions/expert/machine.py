"""How much memory this process may use: what the machine has, or its control groups allow."""

import os
from collections.abc import Iterator
from pathlib import Path

_UNLIMITED = 1 << 62
"""Version 1 writes a number close to this where there is no limit, version 2 the word max."""


def machine_memory() -> int:
    """Bytes of memory that the machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def memory_limit(cgroups: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self")) -> int:
    """Bytes: the machine's memory, or less where a control group of version 1 or 2 says so."""
    return min([machine_memory(), *_cgroup_limits(cgroups, process)])


def _cgroup_limits(cgroups: Path, process: Path) -> Iterator[int]:
    """The limits of this process's group and of those around it, as far as they can be seen."""
    try:
        lines = (process / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _limits_above(cgroups, path, "memory.max")
            yield from _limits_above(cgroups / "unified", path, "memory.max")
        elif "memory" in controllers.split(","):
            yield from _limits_above(cgroups / "memory", path, "memory.limit_in_bytes")


def _limits_above(root: Path, path: str, name: str) -> Iterator[int]:
    group = root / path.strip("/")
    # In a container the group's own path can be that of the host, and its files are at the root.
    for folder in (group, *group.parents):
        if not folder.is_relative_to(root):
            return
        try:
            text = (folder / name).read_text().strip()
        except OSError:
            continue
        if text.isdecimal() and int(text) < _UNLIMITED:
            yield int(text)
