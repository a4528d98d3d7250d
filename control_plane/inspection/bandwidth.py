"""Measures how fast this machine reads memory, with one process per core, and disk, with direct reads."""

import multiprocessing
import os
import queue
import time
from collections.abc import Iterable
from itertools import cycle
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median

import numpy as np

from control_plane.errors import ConfigError, FaaSMoEError
from functions.expert.arena import Arena

MEMORY_BYTES = 512 << 20
"""Memory that each process reads; more than the caches hold."""
PASSES = 7
PIECE_BYTES = 8 << 20
PLACES = 64
DISK_SECONDS = 4.0
DEADLINE_SECONDS = 60.0


def memory_bandwidth(processes: int = os.cpu_count() or 1, nbytes: int = MEMORY_BYTES) -> float:
    """Bytes per second of all processes together, each of which reads its own `nbytes` several times.

    The processes compute the maximum of 32-bit integers with NumPy, which costs little besides reading.
    Raises `FaaSMoEError` if that takes longer than a minute.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    speeds: Queue[float] = context.Queue()
    readers = [context.Process(target=_read_memory, args=(barrier, speeds, nbytes)) for _ in range(processes)]
    for reader in readers:
        reader.start()
    try:
        return sum(speeds.get(timeout=DEADLINE_SECONDS) for _ in readers)
    except queue.Empty:
        raise FaaSMoEError("could not measure the memory: its readers did not end") from None
    finally:
        for reader in readers:
            reader.kill()
            reader.join()


def disk_bandwidth(files: Iterable[Path], seconds: float = DISK_SECONDS) -> float:
    """Bytes per second of direct reads of the files, in pieces of 8 MB, until the time is over.

    The pieces go to different places in memory, more than the caches hold, like weights. The host copies the
    reads of a virtual disk, and would be 1.5 times as fast if they all went to the same place.
    Raises `ConfigError` if the file system has no direct reads.
    """
    arena = Arena(PLACES, PIECE_BYTES)
    places = [arena.place(slot, 0, PIECE_BYTES) for slot in range(PLACES)]
    for place in places:
        place[:] = bytes(PIECE_BYTES)
    pieces = cycle(places)
    total, started = 0, time.perf_counter()
    for path in files:
        try:
            file = os.open(path, os.O_RDONLY | os.O_DIRECT)
        except OSError as error:
            raise ConfigError(f"cannot read {path} past the page cache: {error.strerror}") from error
        try:
            nbytes = PIECE_BYTES
            while nbytes == PIECE_BYTES and time.perf_counter() < started + seconds:
                nbytes = os.readv(file, [next(pieces)])
                total += nbytes
        finally:
            os.close(file)
    return total / (time.perf_counter() - started)


def _read_memory(barrier: Barrier, speeds: "Queue[float]", nbytes: int) -> None:
    """Put the median bytes per second of several passes. All processes begin each pass together."""
    numbers = np.ones(nbytes // 4, np.int32)
    seconds = []
    for _ in range(PASSES):
        barrier.wait(DEADLINE_SECONDS)
        started = time.perf_counter()
        np.maximum.reduce(numbers)
        seconds.append(time.perf_counter() - started)
    speeds.put(nbytes / median(seconds))
