"""The memory that this process uses and may use, from /proc and /sys."""

import mmap
import subprocess
import sys
from pathlib import Path

import pytest

from control_plane.autoscaling.process_memory import OwnMemory, trim_heap, unread_bytes, used_bytes
from functions.host.memory import MemoryLimit, machine_memory, memory_limit

MB = 1 << 20
MACHINE = machine_memory()


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
    assert 64 * MB < memory_limit().nbytes < 1 << 50


def test_used_memory_grows_with_written_pages() -> None:
    own = OwnMemory.measure()
    before, before_cheaply = used_bytes(), own.used()
    with mmap.mmap(-1, 64 * MB) as memory:
        assert abs(used_bytes() - before) < 8 * MB
        for page in range(0, 64 * MB, mmap.PAGESIZE):
            memory[page] = 1
        assert 60 * MB < used_bytes() - before < 72 * MB
        assert 60 * MB < own.used() - before_cheaply < 72 * MB
    trim_heap()
    assert abs(used_bytes() - before) < 8 * MB


def test_unread_bytes_of_a_mapped_file(tmp_path: Path) -> None:
    path, other = tmp_path / "weights one", tmp_path / "other"
    for file in (path, other):
        file.write_bytes(b"x" * MB)
    assert unread_bytes(path) == 0
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        mapped.madvise(mmap.MADV_RANDOM)
        unread = unread_bytes(path)
        assert 0 < unread <= MB
        assert sum(mapped[page] for page in range(0, MB, mmap.PAGESIZE)) > 0
        assert unread_bytes(path) == 0
        assert unread_bytes(other) == 0


_PRODUCTS_OF_MANY_SHAPES = """
import torch
from control_plane.autoscaling.process_memory import bound_product_caches, trim_heap, used_bytes

bound_product_caches()
weight = torch.ones(64, 64, dtype=torch.bfloat16)
with torch.inference_mode():
    for rows in range(1, 21):
        torch.ones(rows, 64, dtype=torch.bfloat16) @ weight
    before = used_bytes()
    for rows in range(21, 321):
        torch.ones(rows, 64, dtype=torch.bfloat16) @ weight
trim_heap()
print(used_bytes() - before)
"""


def test_products_of_many_shapes_leave_nothing_in_memory() -> None:
    # In a new process, because torch reads the settings only once.
    run = subprocess.run(
        [sys.executable, "-c", _PRODUCTS_OF_MANY_SHAPES],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert int(run.stdout) < 20 * MB
