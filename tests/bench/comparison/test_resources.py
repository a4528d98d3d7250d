"""Resources of real processes are sampled and added up."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bench.comparison.measuring.resources import Meter, Moment, Root, bill, metered

BUSY = """
import subprocess, sys
memory = bytearray(b"x" * 50_000_000)
work = "print(sum(range(10**6)), flush=True); input()"
child = subprocess.Popen([sys.executable, "-c", work], stdin=subprocess.PIPE)
input()
child.communicate(b"\\n")
input()
"""


@contextmanager
def started() -> Iterator[subprocess.Popen[bytes]]:
    """A process with 50 MB, and a child."""
    process = subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


def test_children_have_their_own_role_and_the_time_of_an_ended_child_still_counts() -> None:
    with started() as process:
        meter = Meter([Root(process.pid, "server", "function")])
        before = meter.read()
        assert before.processes == {"server": 1, "function": 1}
        assert 50_000_000 < before.memory_bytes["server"] < 80_000_000
        assert 0 < before.memory_bytes["function"] < 30_000_000
        assert before.cpu_seconds["function"] > 0
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        deadline = time.monotonic() + 20
        while (after := meter.read()).processes.get("function"):
            assert time.monotonic() < deadline
        assert after.processes == {"server": 1}
        assert after.cpu_seconds["function"] >= before.cpu_seconds["function"]


def test_a_process_that_has_ended_uses_no_memory() -> None:
    with started() as process:
        meter = Meter([Root(process.pid, "server", "function")])
        meter.read()
    after = meter.read()
    assert after.processes == after.memory_bytes == {}
    assert after.cpu_seconds["server"] > 0


def test_there_is_a_sample_at_each_end() -> None:
    with metered([Root(os.getpid(), "tests", "children")], interval=60.0) as moments:
        assert len(moments) == 1
    assert len(moments) == 2
    assert moments[0].seconds < moments[1].seconds


def test_samples_add_up_to_a_bill() -> None:
    def moment(seconds: float, cpu: float, gigabytes: float, awake: int) -> Moment:
        memory = {"server": 10**9, "function": int((gigabytes - 1) * 1e9)}
        running = {"server": 1, "function": awake}
        return Moment(seconds, {"server": cpu, "function": cpu}, memory, running, {"function": 3 + awake})

    total = bill([moment(1.0, 5.0, 1.0, 0), moment(2.0, 6.0, 3.0, 4), moment(4.0, 7.5, 3.0, 2)])
    assert total.seconds == 3.0
    assert total.cpu_seconds == 5.0
    assert total.gigabyte_seconds == pytest.approx(2.0 + 6.0)
    assert total.mean_bytes == pytest.approx(8e9 / 3)
    assert total.peak_bytes == 3 * 10**9
    assert total.function_seconds == pytest.approx(2.0 + 6.0)
    assert total.cold_starts == 2
