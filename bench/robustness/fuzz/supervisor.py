"""Runs a target's inputs in worker processes, so that a crash or a hang is a finding, too."""

import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.robustness.fuzz.progress import Progress
from bench.robustness.fuzz.share import MOST_FINDINGS, write_finding

START_SECONDS = 180.0
"""How long a worker may take to start what it needs, which can be a whole server."""
HANG_SECONDS = 45.0
"""An input that takes longer is a finding. On an idle machine, none takes more than some seconds."""
MEMORY_GROWTH = 32 << 20
"""The most bytes by which memory may grow between a quarter of the inputs and the end."""
STOP_SECONDS = 60.0
"""How long a worker may take to end what it started."""
_POLL_SECONDS = 0.1
_RUN_VARIABLE = "FAASMOE_FUZZ_RUN"
"""Marks a worker's processes, so that they can be found when it has crashed."""


@dataclass(frozen=True)
class Order:
    """What is to be run of a target."""

    name: str
    seed: int
    inputs: int
    seconds: float
    """The most time for all of them."""
    findings: Path
    """The folder to which findings are written."""


@dataclass(frozen=True)
class Outcome:
    """What became of a target's inputs."""

    name: str
    inputs: int
    accepted: int
    refused: int
    findings: int
    seconds: float
    growth: int
    """Bytes by which memory grew after a quarter of the inputs; 0 if that is not known."""


def supervise(order: Order, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> Outcome:
    """Run all inputs; after a crash or a hang, a new worker goes on with the next input.

    `command` starts a worker in `folder`; it gets the options of bench/robustness/fuzz/worker.py.
    """
    began = time.monotonic()
    order.findings.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="faasmoe-fuzz-") as temporary:
        path = Path(temporary, "progress")
        with Progress(path) as progress:
            goes_on = True
            while goes_on and progress.findings < MOST_FINDINGS:
                options = {
                    "progress": path,
                    "findings": order.findings,
                    "seed": order.seed,
                    "first": progress.begun,
                    "stop": order.inputs,
                    "seconds": max(0.0, began + order.seconds - time.monotonic()),
                }
                worker = [*command, *(f"--{name}={value}" for name, value in options.items())]
                goes_on = _run(order, worker, environment, folder, progress)
            growth = progress.memory_end - progress.memory_warm if progress.memory_warm else 0
            if growth > MEMORY_GROWTH:
                _add_finding(order, progress, f"memory grew by {growth} bytes")
            return Outcome(
                name=order.name,
                inputs=progress.begun,
                accepted=progress.accepted,
                refused=progress.refused,
                findings=progress.findings,
                seconds=time.monotonic() - began,
                growth=growth,
            )


def _run(
    order: Order, command: Sequence[str], environment: Mapping[str, str], folder: Path, progress: Progress
) -> bool:
    """Run one worker; returns whether another one has to go on after it."""
    first = progress.begun
    mark = uuid.uuid4().hex
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            env={**environment, _RUN_VARIABLE: mark},
            cwd=folder,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
        try:
            problem = _watch(process, progress)
        finally:
            _end_all(process, mark)
        log.seek(0)
        said = log.read().decode(errors="replace")
    if problem is not None:
        _add_finding(order, progress, f"{problem}\n\n{said}")
        # A worker that handled no input would fail again.
        return progress.begun > first
    if "Traceback (most recent call last)" in said:
        _add_finding(order, progress, f"a process printed a traceback; one of the inputs caused it\n\n{said}")
    return False


def _watch(process: subprocess.Popen[bytes], progress: Progress) -> str | None:
    """Wait until the worker ends; returns what it did wrong."""
    first = seen = progress.begun
    changed = time.monotonic()
    while process.poll() is None:
        time.sleep(_POLL_SECONDS)
        waited = time.monotonic() - changed
        if progress.begun != seen:
            seen, changed = progress.begun, time.monotonic()
        elif waited > (START_SECONDS if seen == first else HANG_SECONDS):
            # Its fault handler prints where it hangs.
            process.send_signal(signal.SIGABRT)
            return f"took more than {waited:.0f} s"
    return f"ended with status {process.returncode}" if process.returncode else None


def _end_all(process: subprocess.Popen[bytes], mark: str) -> None:
    """Make sure that the worker and all processes that it started have ended."""
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for other in psutil.process_iter():
        try:
            if other.environ().get(_RUN_VARIABLE) == mark:
                other.kill()
                other.wait(STOP_SECONDS)
        except psutil.Error:
            pass  # Another user's process, or one that has ended.


def _add_finding(order: Order, progress: Progress, text: str) -> None:
    progress.findings += 1
    number = progress.begun - 1
    path = order.findings / f"{order.name}-{order.seed}-{number}"
    if path.with_suffix(".txt").exists():
        path = path.with_name(f"{path.name}-end")
    write_finding(path, progress.current, f"{order.name}, seed {order.seed}, number {number}: {text}")
