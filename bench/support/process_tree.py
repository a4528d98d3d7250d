"""What a process and all that it has started use: memory, and bytes read from disk."""

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
    """The memory in use at one moment: proportional set sizes, each shared page counted once."""

    seconds: float
    """Of time.perf_counter()."""
    nbytes: int


def processes(pid: int) -> list[psutil.Process]:
    """The process, and after it those that it and its children have started; none once it has ended."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


@dataclass
class ProcessTree:
    """A process, and those that it and its children have started."""

    pid: int
    proc: Path = Path("/proc")
    _read_bytes: dict[tuple[int, float], int] = field(default_factory=dict)

    def memory_bytes(self) -> int:
        """The sum of the proportional set sizes; 0 when all have ended."""
        return sum(self.memory_by_process().values())

    def memory_by_process(self) -> dict[int, int]:
        """The proportional set size of each that still runs."""
        rollups = {process.pid: self._text(process, "smaps_rollup") for process in processes(self.pid)}
        return {pid: _number(text, "Pss") * _KIB for pid, text in rollups.items()}

    def read_bytes(self) -> int:
        """What block devices have read for them; of one that has ended, what was seen of it last."""
        for process in processes(self.pid):
            if text := self._text(process, "io"):
                self._read_bytes[process.pid, process.create_time()] = _number(text, "read_bytes")
        return sum(self._read_bytes.values())

    def _text(self, process: psutil.Process, name: str) -> str:
        """A file of /proc; empty for a process that has just ended."""
        try:
            return (self.proc / str(process.pid) / name).read_text()
        except (FileNotFoundError, ProcessLookupError):
            return ""


@contextmanager
def sampled(tree: ProcessTree, interval_s: float, most_share: float = 1.0) -> Iterator[Sequence[Sample]]:
    """The tree's memory, from now to the end of the context; the list grows while it lasts.

    The kernel walks all pages for a sample. So that this takes at most `most_share` of the time, samples may
    come less often than asked for.
    """
    samples: list[Sample] = []

    def sample() -> None:
        started = time.perf_counter()
        samples.append(Sample(started, tree.memory_bytes()))

    with repeated(sample, 0.0, interval_s, most_share):
        yield samples


@contextmanager
def repeated(
    read: Callable[[], None], pause_s: float, interval_s: float, most_share: float = 1.0
) -> Iterator[None]:
    """Call it from a thread, first after the pause and then at intervals, to the end of the context.

    It takes at most `most_share` of the time: where it takes long, intervals are longer.
    """
    ended = threading.Event()

    def repeat() -> None:
        pause = pause_s
        while not ended.wait(pause):
            started = time.perf_counter()
            read()
            took = time.perf_counter() - started
            pause = max(interval_s, took / most_share) - took

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
