"""The build with GCC's sanitizers: `make fuzz` runs on it."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench.robustness.fuzz import sanitized
from tests.support.paths import ROOT

# The first run compiles both extensions.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

OVERFLOW = """
import ctypes
from functions.kernels import _gated_ffn
assert _gated_ffn.__file__.startswith({folder!r}), _gated_ffn.__file__
import numpy as np
ctypes.memset(np.zeros(20, np.uint8).ctypes.data, 0, {nbytes})
"""


@pytest.mark.parametrize(("nbytes", "problem"), [(20, ""), (21, "AddressSanitizer: heap-buffer-overflow")])
def test_an_access_outside_of_an_allocation_ends_the_process(nbytes: int, problem: str) -> None:
    folder = sanitized.build(ROOT)
    ended = subprocess.run(
        [sys.executable, "-c", OVERFLOW.format(folder=str(folder), nbytes=nbytes)],
        env=sanitized.environment(),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode != 0) == bool(problem), ended.stderr
    assert problem in ended.stderr


def test_the_command_prints_a_table(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.robustness.fuzz", "--inputs", "40", "--target", "raw-kernels"]
    ended = subprocess.run(
        [*command, "--findings", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    header, row = ended.stdout.splitlines()
    assert header.split()[:5] == ["target", "inputs", "accepted", "refused", "findings"]
    assert row.split()[:2] == ["raw-kernels", "40"]
    assert row.split()[4] == "0"
