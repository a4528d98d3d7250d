"""Memory and disk reads of a process and its descendants."""

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_KIB = 1024


@dataclass(frozen=True)
class Sample:
    """Memory of a process tree at one moment."""

    seconds: float
    """When the sample was taken, in seconds of time.perf_counter()."""
    nbytes: int
    """Sum of the proportional set sizes, which counts each shared page once."""


def processes(pid: int) -> list[psutil.Process]:
    """A process, followed by its descendants; empty if it has ended."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


@dataclass
class ProcessTree:
    """A process and its descendants."""

    pid: int
    proc: Path = Path("/proc")
    _read_bytes: dict[tuple[int, float], int] = field(default_factory=dict)

    def memory_bytes(self) -> int:
        """Sum of the proportional set sizes; 0 if all processes have ended."""
        return sum(self.memory_by_process().values())

    def memory_by_process(self) -> dict[int, int]:
        """Proportional set size of each running process, by id."""
        rollups = {process.pid: self._text(process, "smaps_rollup") for process in processes(self.pid)}
        return {pid: _number(text, "Pss") * _KIB for pid, text in rollups.items()}

    def read_bytes(self) -> int:
        """Bytes read from block devices. Of a process that has ended, the last value seen counts."""
        for process in processes(self.pid):
            if text := self._text(process, "io"):
                self._read_bytes[process.pid, process.create_time()] = _number(text, "read_bytes")
        return sum(self._read_bytes.values())

    def _text(self, process: psutil.Process, name: str) -> str:
        """A file of /proc; empty if the process has just ended."""
        try:
            return (self.proc / str(process.pid) / name).read_text()
        except (FileNotFoundError, ProcessLookupError):
            return ""


@contextmanager
def sampled(tree: ProcessTree, interval_s: float, max_share: float = 1.0) -> Iterator[Sequence[Sample]]:
    """Sample the tree's memory until the end of the context. The yielded list grows meanwhile.

    The kernel walks all pages for each sample. If sampling would take more than `max_share` of the time,
    the interval gets longer.
    """
    samples: list[Sample] = []

    def sample() -> None:
        started = time.perf_counter()
        samples.append(Sample(started, tree.memory_bytes()))

    with repeated(sample, 0.0, interval_s, max_share):
        yield samples


@contextmanager
def repeated(
    read: Callable[[], None], pause_s: float, interval_s: float, max_share: float = 1.0
) -> Iterator[None]:
    """Call `read` from a thread until the end of the context, first after the pause and then at intervals.

    The calls take at most `max_share` of the time; if they take longer, the intervals get longer.
    """
    ended = threading.Event()

    def repeat() -> None:
        pause = pause_s
        while not ended.wait(pause):
            started = time.perf_counter()
            read()
            took = time.perf_counter() - started
            pause = max(interval_s, took / max_share) - took

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _number(text: str, name: str) -> int:
    found = re.search(rf"^{name}: +(\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0
