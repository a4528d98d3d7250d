"""The memory that this process uses, from /proc."""

import mmap
import subprocess
import sys
from pathlib import Path

from control_plane.autoscaling.process_memory import OwnMemory, trim_heap, unread_bytes, used_bytes

MB = 1 << 20


def test_used_memory_grows_with_written_pages() -> None:
    # What earlier tests have freed is not to count as freed by this one.
    trim_heap()
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
