"""Compares ways to read an expert's weights from disk: `make bench-residency`.

The ways are mapped pages with advice, and direct reads into memory with small or huge pages, the latter also
with the check of the expert's checksum. All read the same experts in the same random order from one cold
file. Each expert is then read once from memory, as the kernel would, and dropped when its place is needed.

A second table has the time of the checksum alone, over experts that no cache holds.
"""

import mmap
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from bench.support.page_cache import forget
from functions.contract.manifest import ExpertChecksum
from functions.expert.arena import Arena

EXPERT_NBYTES = 8_654_848
"""Size of one int8 expert of Qwen1.5-MoE-A2.7B, rounded up to whole pages."""
EXPERTS = 200
KEPT = 30
"""Experts in memory at the same time."""
CHECKED_NBYTES = (1 << 20, EXPERT_NBYTES, 17_301_504)
"""The last is the size of a bf16 expert of the same model."""
COLD_NBYTES = 256 << 20
READ_AHEAD_BYTES = 128 << 10

Bring = Callable[[int], None]
"""Reads the expert with this number from disk, and then all of it from memory once."""


@contextmanager
def mapped(path: Path) -> Iterator[Bring]:
    """Mapped pages, with advice to read before use, and to drop from memory and page cache after it."""
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
    """Direct reads into memory with small pages."""
    memory = memoryview(mmap.mmap(-1, KEPT * EXPERT_NBYTES))
    with _filled(path, lambda slot, start, end: memory[slot * EXPERT_NBYTES :][start:end]) as bring:
        yield bring


@contextmanager
def huge_pages(path: Path) -> Iterator[Bring]:
    """Direct reads into the functions' arena, which has huge pages."""
    with _filled(path, Arena(KEPT, EXPERT_NBYTES).place) as bring:
        yield bring


@contextmanager
def checked(path: Path) -> Iterator[Bring]:
    """Direct reads into the functions' arena, and the checksum of each expert, as functions do it."""
    with _filled(path, Arena(KEPT, EXPERT_NBYTES).place, lambda slot: ExpertChecksum(slot)) as bring:
        yield bring


@contextmanager
def _filled(
    path: Path,
    place: Callable[[int, int, int], memoryview],
    check: Callable[[memoryview], object] = lambda slot: None,
) -> Iterator[Bring]:
    """Direct reads into slots of one expert each. `place` returns bytes start to end of a slot."""
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    brought = 0

    def bring(expert: int) -> None:
        nonlocal brought
        slot = place(brought % KEPT, 0, EXPERT_NBYTES)
        brought += 1
        os.preadv(file, [slot], expert * EXPERT_NBYTES)
        check(slot)
        _read(np.frombuffer(slot, np.uint8))

    try:
        yield bring
    finally:
        os.close(file)


def _read(weights: NDArray[Any]) -> None:
    weights.view(np.uint64).max()


def measure(
    way: Callable[[Path], AbstractContextManager[Bring]], path: Path, order: list[int]
) -> tuple[float, float, float]:
    """Median milliseconds per expert, bytes per second of all, and CPU seconds per gigabyte.

    Only counts experts that replace others: a function touches its memory for the first time only once.
    """
    forget([path])
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


def checksum_speed(nbytes: int) -> tuple[float, float]:
    """Median milliseconds of the checksum of an expert of so many bytes, and bytes per second."""
    count = max(2, COLD_NBYTES // nbytes)
    memory = memoryview(np.random.default_rng(0).bytes(count * nbytes))
    times = []
    for expert in range(count):
        started = time.perf_counter()
        ExpertChecksum(memory[expert * nbytes : (expert + 1) * nbytes]).hexdigest()
        times.append(time.perf_counter() - started)
    return median(times) * 1e3, nbytes / median(times)


@click.command(help=__doc__)
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False),
    help="Folder on the disk to measure.  [default: that of temporary files]",
)
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
def main(folder: str | None, repeats: int) -> None:
    # Each expert once: mapped pages would come from the page cache the second time.
    order = random.Random(0).sample(range(EXPERTS), EXPERTS)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        pool = np.random.default_rng(0).bytes(EXPERT_NBYTES)
        for _ in range(EXPERTS):
            file.write(pool)
        file.flush()
        click.echo("| way | an expert | bytes/s | CPU s/GB |\n|---|---|---|---|")
        for _ in range(repeats):
            for way in (mapped, small_pages, huge_pages, checked):
                milliseconds, speed, cpu = measure(way, Path(file.name), order)
                figures = f"{milliseconds:.1f} ms | {speed / 1e9:.2f} GB/s | {cpu:.2f}"
                click.echo(f"| {way.__name__} | {figures} |")
    click.echo("\n| an expert of | its checksum | bytes/s |\n|---|---|---|")
    for nbytes in CHECKED_NBYTES:
        milliseconds, speed = checksum_speed(nbytes)
        click.echo(f"| {nbytes / 1e6:.1f} MB | {milliseconds:.2f} ms | {speed / 1e9:.1f} GB/s |")


if __name__ == "__main__":
    main()
