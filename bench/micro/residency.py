"""How to bring an expert's weights into memory: mapped pages with advice, or reads into an arena.

Both ways bring the same experts, in the same random order, from one cold file; each expert is read once from
memory, as the kernel would, and dropped again when its place is needed: `make bench-residency`.
"""

import argparse
import mmap
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np

from functions.expert.arena import Arena

EXPERT_NBYTES = 8_654_848
"""One int8 expert of the Qwen1.5-MoE-A2.7B shape, in whole pages."""
EXPERTS = 200
KEPT = 30
"""Experts that are held at a time."""
READ_AHEAD_BYTES = 128 << 10

Bring = Callable[[int], None]
"""Brings the expert of that number into memory and reads all of it once."""


@contextmanager
def mapped(path: Path) -> Iterator[Bring]:
    """Mapped pages: advice before use, advice to drop, and the page cache told to forget, too."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
        held: list[int] = []

        def bring(expert: int) -> None:
            start = expert * EXPERT_NBYTES
            if len(held) == KEPT:
                dropped = held.pop(0) * EXPERT_NBYTES
                pages.madvise(mmap.MADV_DONTNEED, dropped, EXPERT_NBYTES)
                os.posix_fadvise(file.fileno(), dropped, EXPERT_NBYTES, os.POSIX_FADV_DONTNEED)
            for piece in range(start, start + EXPERT_NBYTES, READ_AHEAD_BYTES):
                size = min(READ_AHEAD_BYTES, start + EXPERT_NBYTES - piece)
                pages.madvise(mmap.MADV_WILLNEED, piece, size)
            held.append(expert)
            _read(np.frombuffer(pages, np.uint8, EXPERT_NBYTES, start))

        yield bring


@contextmanager
def small_pages(path: Path) -> Iterator[Bring]:
    """An arena on the system's small pages."""
    memory = memoryview(mmap.mmap(-1, KEPT * EXPERT_NBYTES))
    with _filled(path, lambda slot, start, end: memory[slot * EXPERT_NBYTES :][start:end]) as bring:
        yield bring


@contextmanager
def huge_pages(path: Path) -> Iterator[Bring]:
    """The functions' own arena."""
    with _filled(path, Arena(KEPT, EXPERT_NBYTES).place) as bring:
        yield bring


@contextmanager
def _filled(path: Path, place: Callable[[int, int, int], memoryview]) -> Iterator[Bring]:
    """Slots of one expert in memory of our own, filled by direct reads."""
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    brought = 0

    def bring(expert: int) -> None:
        nonlocal brought
        slot = place(brought % KEPT, 0, EXPERT_NBYTES)
        brought += 1
        os.preadv(file, [slot], expert * EXPERT_NBYTES)
        _read(np.frombuffer(slot, np.uint8))

    try:
        yield bring
    finally:
        os.close(file)


def _read(weights: np.ndarray) -> None:
    weights.view(np.uint64).max()


def measure(way: Callable, path: Path, order: list[int]) -> tuple[float, float, float]:
    """Median milliseconds to bring one expert, bytes per second of the whole, CPU seconds a gigabyte.

    Counted from when as many are held as may be: a function's memory is first touched once, in all its life.
    """
    drop_page_cache(path)
    times = []
    with way(path) as bring:
        for expert in order[:KEPT]:
            bring(expert)
        cpu = time.process_time()
        for expert in order[KEPT:]:
            started = time.perf_counter()
            bring(expert)
            times.append(time.perf_counter() - started)
    nbytes = len(times) * EXPERT_NBYTES
    return median(times) * 1e3, nbytes / sum(times), (time.process_time() - cpu) / nbytes * 1e9


def drop_page_cache(path: Path) -> None:
    """Have the file's pages forgotten, so that reads come from disk."""
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured (default: the temporary one)")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    # Each once: what is mapped would come from the page cache the second time.
    order = random.Random(0).sample(range(EXPERTS), EXPERTS)
    with tempfile.NamedTemporaryFile(dir=arguments.folder) as file:
        pool = np.random.default_rng(0).bytes(EXPERT_NBYTES)
        for _ in range(EXPERTS):
            file.write(pool)
        file.flush()
        print("| way | an expert | bytes/s | CPU s/GB |\n|---|---|---|---|")
        for _ in range(arguments.repeats):
            for way in (mapped, small_pages, huge_pages):
                milliseconds, speed, cpu = measure(way, Path(file.name), order)
                figures = f"{milliseconds:.1f} ms | {speed / 1e9:.2f} GB/s | {cpu:.2f}"
                print(f"| {way.__name__} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
