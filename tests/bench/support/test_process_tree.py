"""Memory and reads of a tree of real processes."""

import subprocess
import sys
import time

from bench.support.process_tree import ProcessTree, sampled

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE)
sys.stdin.read()
child.communicate()
"""
CHILD = "import sys; held = bytearray(b'x') * 100_000_000; print('held', flush=True); sys.stdin.read()"


def test_memory_of_child_processes_counts() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        tree = ProcessTree(process.pid)
        assert process.stdout.readline() == b"held\n"
        with sampled(tree, 0.01) as samples:
            deadline = time.monotonic() + 20
            while len(samples) < 3 and time.monotonic() < deadline:
                time.sleep(0.01)
        assert len(tree.memory_by_process()) == 2
        process.communicate(timeout=20)
    sizes = [sample.nbytes for sample in samples]
    assert len(sizes) >= 3
    assert 100e6 < min(sizes) < 200e6
    assert samples[0].seconds < samples[-1].seconds


def test_a_tree_that_has_ended_uses_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait(timeout=20)
    tree = ProcessTree(process.pid)
    assert (tree.memory_bytes(), tree.read_bytes()) == (0, 0)
