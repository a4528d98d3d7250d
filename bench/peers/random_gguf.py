"""llama.cpp with a random model of the weights of a partition."""

import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from bench.memory_limit.faasmoe import LONG_PROMPT, DecodeLoad
from bench.memory_limit.scenarios import SEQUENCES
from bench.peers.batched_bench import LLAMA_CPP, BatchedBench
from bench.peers.table import Speeds, decode_row, prefill_row
from control_plane.errors import FaaSMoEError


@dataclass
class RandomGguf:
    """What is measured of a shape."""

    name: str
    partition: Path
    program: Path
    """llama-batched-bench."""
    threads: int
    seconds: float = 0.0
    """Time to write the file."""
    rounds: list[Speeds] = field(default_factory=list)
    problem: str = ""
    """Why there are no speeds; empty if there are."""

    @property
    def file(self) -> Path:
        """The model, beside the partition."""
        return self.partition.with_name(f"{self.name}.gguf")

    def make(self) -> None:
        """Write the file, with matrices in Q4_0, and gpt-oss's experts in MXFP4. Raises `FaaSMoEError`."""
        command = [sys.executable, "-m", "bench.support.gguf", "--router-skew", "1", "--type", "Q4_0"]
        command += ["--config", str(self.partition / "config.json"), "--out", str(self.file)]
        began = time.monotonic()
        if subprocess.run(command, check=False).returncode:
            raise FaaSMoEError(f"could not write {self.file}, see above")
        self.seconds = time.monotonic() - began

    async def measure(self, limit: str, load: DecodeLoad) -> None:
        """Measure all rounds under the limit. Raises `FaaSMoEError`."""
        bench = BatchedBench(LLAMA_CPP, self.program, self.file, self.threads, load.output_tokens)
        for _ in range(load.rounds):
            self.rounds.append(await bench.all_speeds(limit, SEQUENCES))

    def cells(self, limit: str, columns: int) -> list[str]:
        """The row of `bench.peers.families`' table, of so many columns."""
        row = [f"{self.name} in llama.cpp"]
        if self.problem:
            return [*row, self.problem]
        speeds = [
            f"{median(each[name].value for each in self.rounds):.1f}"
            for name in (prefill_row(LONG_PROMPT), *(decode_row(count, limit) for count in SEQUENCES))
        ]
        row += ["-", f"{self.file.stat().st_size / 1e9:.1f} GB", f"{self.seconds:.0f} s", "-", *speeds]
        return row + ["-"] * (columns - len(row))
