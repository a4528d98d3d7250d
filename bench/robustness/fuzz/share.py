"""Runs a share of a target's inputs in this process, and writes what they find."""

import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from bench.robustness.fuzz.progress import Progress
from bench.robustness.fuzz.support.target import Target
from bench.support.process_tree import ProcessTree

MOST_FINDINGS = 20
"""A worker stops after so many: they are likely to have one cause."""
MINIMISE_SECONDS = 5.0
"""How long a smaller input is looked for that does the same."""


@dataclass(frozen=True)
class Share:
    """The inputs that a worker has to run: `first` to `stop`, until time.monotonic() is `deadline`."""

    seed: int
    first: int
    stop: int
    deadline: float = float("inf")


def input_of(target: Target, name: str, seed: int, number: int) -> bytes:
    """An input depends only on the target's name, the seed and the number: each can be made again alone."""
    return target.make(Random(f"{name}/{seed}/{number}"))


def run_share(target: Target, name: str, share: Share, progress: Progress, findings: Path) -> None:
    """Run a share of a target's inputs; writes each finding to two files in the folder `findings`."""
    tree = ProcessTree(os.getpid())
    began = time.monotonic()
    for number in range(share.first, share.stop):
        if time.monotonic() > share.deadline or progress.findings >= MOST_FINDINGS:
            break
        if not progress.memory_warm and _quarter_is_done(share, number, began):
            progress.memory_warm = tree.memory_bytes()
        data = input_of(target, name, share.seed, number)
        progress.begin(number, data)
        try:
            if target.run(data):
                progress.accepted += 1
            else:
                progress.refused += 1
        except Exception as error:
            progress.findings += 1
            smaller = minimised(target, data, error)
            text = (
                f"{name}, seed {share.seed}, number {number}\n\n{''.join(traceback.format_exception(error))}"
            )
            write_finding(findings / f"{name}-{share.seed}-{number}", smaller, text)
    progress.memory_end = tree.memory_bytes()


def write_finding(path: Path, data: bytes, text: str) -> None:
    """Write an input and a description of what it did."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".input").write_bytes(data)
    path.with_suffix(".txt").write_text(text, errors="backslashreplace")


def minimised(target: Target, data: bytes, error: Exception) -> bytes:
    """A shorter input that raises an exception of the same class at the same place, if one is found."""
    wanted = _place_of(error)
    deadline = time.monotonic() + MINIMISE_SECONDS
    size = len(data) // 2
    while size:
        start = 0
        while start < len(data) and time.monotonic() < deadline:
            smaller = data[:start] + data[start + size :]
            if _raises(target.run, smaller) == wanted:
                data = smaller
            else:
                start += size
        size //= 2
    return data


def _raises(run: Callable[[bytes], bool], data: bytes) -> object:
    try:
        run(data)
    except Exception as error:
        return _place_of(error)
    return None


def _place_of(error: Exception) -> object:
    """The exception's class, and the line that raised it."""
    *_, last = traceback.extract_tb(error.__traceback__)
    return type(error), last.filename, last.lineno


def _quarter_is_done(share: Share, number: int, began: float) -> bool:
    if number - share.first >= (share.stop - share.first) // 4:
        return True
    return time.monotonic() > began + (share.deadline - began) / 4
