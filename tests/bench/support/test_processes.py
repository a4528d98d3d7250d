"""Servers of a benchmark end with it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from control_plane.partition.partitioner import partition
from tests.support.command_line import WAIT_SECONDS
from tests.support.paths import DEMO_MODEL, ROOT

SERVE = """
import asyncio, sys
from pathlib import Path
from bench.support.processes import gateway

async def main():
    async with gateway(Path(sys.argv[1])) as (pid, _):
        print(pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def test_a_terminated_benchmark_leaves_no_server(tmp_path: Path) -> None:
    partition(DEMO_MODEL, tmp_path / "demo")
    command = [sys.executable, "-c", SERVE, str(tmp_path / "demo")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as benchmark:
        assert benchmark.stdout is not None
        server = Path(f"/proc/{int(benchmark.stdout.readline())}")
        assert server.exists()
        benchmark.send_signal(signal.SIGTERM)
        assert benchmark.wait(WAIT_SECONDS) == 128 + signal.SIGTERM
    deadline = time.monotonic() + WAIT_SECONDS
    while server.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
