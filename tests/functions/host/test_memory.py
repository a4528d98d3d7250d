"""The memory that this process may use, and what happens to large buffers when they are freed."""

import subprocess
import sys
from pathlib import Path

import pytest

from functions.host.memory import MemoryLimit, machine_memory, memory_limit

MACHINE = machine_memory()

SCRIPT = """
import ctypes
from functions.host.memory import return_large_buffers

class Counts(ctypes.Structure):
    # glibc's struct mallinfo2
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    _fields_ = [(name, ctypes.c_size_t) for name in names]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Counts

def mapped(size):
    before = libc.mallinfo2().hblks
    buffer = bytearray(size)
    return libc.mallinfo2().hblks - before

if {here}:
    return_large_buffers()
# By itself, glibc raises its threshold once a large buffer has been freed.
del (large := [bytearray(4 << 20)])[:]
print(mapped(1 << 20), mapped(100 << 10))
"""


def run(here: bool) -> str:
    script = SCRIPT.replace("{here}", str(here))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_large_buffers_are_mapped_and_small_ones_are_not() -> None:
    assert run(True) == "1 0"


def test_glibc_alone_keeps_large_buffers() -> None:
    assert run(False) == "0 0"


def machine(folder: Path, membership: str, limits: dict[str, str]) -> MemoryLimit:
    """The limit of a process with this membership in control groups, which have these limits."""
    proc, cgroups = folder / "proc", folder / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text(membership)
    for name, text in limits.items():
        (cgroups / name).parent.mkdir(parents=True, exist_ok=True)
        (cgroups / name).write_text(text)
    return memory_limit(proc, cgroups)


@pytest.mark.parametrize(
    ("membership", "limits", "nbytes", "source"),
    [
        ("0::/\n", {}, MACHINE, "this machine"),
        ("0::/a/b\n", {"a/b/memory.max": "1000\n"}, 1000, "a/b/memory.max"),
        ("0::/a/b\n", {"a/b/memory.max": "1000\n", "a/memory.max": "900\n"}, 900, "a/memory.max"),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "memory.max": "800\n"}, 800, "cgroup/memory.max"),
        ("0::/a\n", {"a/memory.max": f"{1 << 50}\n"}, MACHINE, "this machine"),
        ("0::/outer/name\n", {"memory.max": "700\n"}, 700, "cgroup/memory.max"),
        ("4:memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": "600\n"}, 600, "limit_in_bytes"),
        ("4:cpu,memory:/a\n", {"memory/memory.limit_in_bytes": "500\n"}, 500, "limit_in_bytes"),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": f"{(1 << 63) - 4096}\n"}, MACHINE, "this machine"),
        ("4:cpu:/a\n", {"memory/a/memory.limit_in_bytes": "600\n"}, MACHINE, "this machine"),
        ("9:name=systemd:/x:y\n0::/\n", {}, MACHINE, "this machine"),
    ],
)
def test_the_smallest_limit_counts(
    tmp_path: Path, membership: str, limits: dict[str, str], nbytes: int, source: str
) -> None:
    limit = machine(tmp_path, membership, limits)
    assert limit.nbytes == nbytes
    assert source in limit.source


def test_this_machine_has_a_limit() -> None:
    assert 64 << 20 < memory_limit().nbytes < 1 << 50


FORK = """
import os
from functions.host.memory import ProcessMemory, memory_sizes

shared = bytearray(64 << 20)
if os.fork():
    os.wait()
else:
    memory = ProcessMemory()
    before = memory.nbytes()
    print(before, memory_sizes()["Pss"])
    own = bytearray(b"x") * (16 << 20)
    print(memory.nbytes() - before)
"""


def test_memory_that_forked_processes_share_counts_in_part() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, check=True)
    measured, size, grown = map(int, done.stdout.split())
    assert measured == pytest.approx(size, abs=1 << 20)
    assert 32 << 20 < measured < 60 << 20
    assert grown == pytest.approx(16 << 20, abs=1 << 20)
