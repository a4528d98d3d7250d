"""A control group (version 1 or 2) around the measured processes: limits their memory, and reads its use."""

import os
import re
import shlex
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from control_plane.errors import ConfigError

GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
REMOVAL_SECONDS = 20.0


@dataclass(frozen=True)
class Cgroup:
    """A control group below that of this process."""

    folder: Path

    def command(self, arguments: Sequence[str]) -> list[str]:
        """A command that joins the group, and then runs `arguments` in it."""
        members = shlex.quote(str(self.folder / "cgroup.procs"))
        return ["/bin/sh", "-c", f'echo $$ > {members} && exec "$@"', "sh", *arguments]

    def used_bytes(self) -> int:
        """Memory that is charged to the group now, including page cache."""
        return int(self._file("memory.current", "memory.usage_in_bytes").read_text())

    def out_of_memory_kills(self) -> int:
        """Number of processes that the kernel has killed because of the group's limit."""
        events = self._file("memory.events", "memory.oom_control").read_text()
        found = re.search(r"^oom_kill (\d+)", events, re.MULTILINE)
        return int(found[1]) if found else 0

    def limit(self, nbytes: int) -> None:
        """Limit the memory that may be charged to the group, including swap."""
        self._file("memory.max", "memory.limit_in_bytes").write_text(str(nbytes))
        for name, value in (("memory.swap.max", 0), ("memory.memsw.limit_in_bytes", nbytes)):
            if (self.folder / name).exists():
                (self.folder / name).write_text(str(value))

    def remove(self) -> None:
        """Kill all processes in the group, and remove it. Raises OSError if that fails for 20 seconds."""
        deadline = time.monotonic() + REMOVAL_SECONDS
        while self.folder.exists():
            for pid in (self.folder / "cgroup.procs").read_text().split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            try:
                self.folder.rmdir()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def _file(self, version_2: str, version_1: str) -> Path:
        path = self.folder / version_2
        return path if path.exists() else self.folder / version_1


@contextmanager
def cgroup(limit_bytes: int | None) -> Iterator[Cgroup | None]:
    """A new group with this limit, which is removed with its processes at the end of the context.

    Without the right to make a group, yields None if there is no limit, and raises `ConfigError` if there is.
    """
    group = Cgroup(parent(MEMBERSHIP.read_text(), GROUPS) / f"faasmoe-bench-{os.getpid()}")
    try:
        group.folder.mkdir()
    except OSError as error:
        if limit_bytes is not None:
            raise ConfigError(f"memory limits need root: cannot make the control group {error}") from None
        yield None
        return
    try:
        if limit_bytes is not None:
            group.limit(limit_bytes)
        yield group
    finally:
        group.remove()


def parent(membership: str, groups: Path) -> Path:
    """The folder in which a process can make groups with memory limits.

    `membership` is the text of /proc/PID/cgroup, `groups` the mount point of the control groups.
    """
    lines = [line.split(":", 2) for line in membership.splitlines()]
    own = {name: group for _, controllers, group in lines for name in controllers.split(",")}
    if "memory" in own:
        return _nearest(groups / "memory", own["memory"], "cgroup.procs")
    return _nearest(groups, own.get("", "/"), "cgroup.subtree_control")


def _nearest(root: Path, group: str, file: str) -> Path:
    """The nearest group, from `group` upwards, that can have limited groups below it.

    In a container, the path can name groups outside of it, which do not exist here. In version 2, a group
    with processes cannot limit groups below it, so a group above it is used.
    """
    path = root / group.lstrip("/")
    while path != root and not _suits(path / file):
        path = path.parent
    return path


def _suits(file: Path) -> bool:
    return file.exists() and (file.name == "cgroup.procs" or "memory" in file.read_text().split())
