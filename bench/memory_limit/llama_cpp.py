"""Measures llama.cpp under one memory limit: runs llama_cpp_process.py in a control group."""

import asyncio
import json
import subprocess
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from pathlib import Path

from bench.memory_limit.faasmoe import (
    LONG_PROMPT,
    SAMPLE_SECONDS,
    SAMPLING_SHARE,
    SHORT_PROMPT,
    with_memory,
)
from bench.memory_limit.results import Result
from bench.memory_limit.scenarios import Scenario
from bench.support.cgroup import cgroup
from bench.support.page_cache import forget
from bench.support.process_tree import ProcessTree, sampled
from control_plane.errors import FaaSMoEError

ROOT = Path(__file__).parents[2]
RUN_SECONDS = 1800.0
STOP_SECONDS = 20.0


@dataclass(frozen=True)
class LimitedLlamaCpp:
    """A GGUF file, and a Python interpreter with llama-cpp-python."""

    python: str
    gguf: Path | None

    def absence(self) -> str:
        """Why llama.cpp cannot be measured; empty if it can."""
        if self.gguf is None or not self.gguf.exists():
            return "there is no GGUF file (--gguf)"
        found = subprocess.run([self.python, "-c", "import llama_cpp"], capture_output=True, check=False)
        return f"{self.python} has no llama_cpp (--llama-python)" if found.returncode else ""

    async def measure(self, scenario: Scenario, output_tokens: int) -> AsyncGenerator[Result, None]:
        """A result for each number of sequences at once, each from a process that starts cold."""
        for count in scenario.sequences:
            result = await self._run(scenario, count, SHORT_PROMPT, output_tokens)
            if count == 1:
                long = await self._run(scenario, count, LONG_PROMPT, 1)
                result = replace(result, prefill_long=long.prefill_short)
            yield result

    async def _run(
        self, scenario: Scenario, sequences: int, prompt_tokens: int, output_tokens: int
    ) -> Result:
        command = [self.python, "-m", "bench.memory_limit.llama_cpp_process", "--gguf", str(self.gguf)]
        command += ["--sequences", str(sequences), "--prompt-tokens", str(prompt_tokens)]
        command += ["--tokens", str(output_tokens)]
        forget([self.gguf] if self.gguf else [])
        with cgroup(scenario.limit_bytes) as group:
            process = await asyncio.create_subprocess_exec(
                *(group.command(command) if group else command), stdout=asyncio.subprocess.PIPE, cwd=ROOT
            )
            try:
                with sampled(ProcessTree(process.pid), SAMPLE_SECONDS, SAMPLING_SHARE) as samples:
                    printed, _ = await asyncio.wait_for(process.communicate(), RUN_SECONDS)
            finally:
                if process.returncode is None:
                    process.kill()
                    await asyncio.wait_for(process.wait(), STOP_SECONDS)
            if process.returncode:
                raise FaaSMoEError(f"llama.cpp has failed with {process.returncode}, see above")
            return with_memory(
                with_figures(scenario.result(sequences), printed, output_tokens), samples, group
            )


def with_figures(result: Result, printed: bytes, output_tokens: int) -> Result:
    """The result with the figures that the process printed. Raises `FaaSMoEError` if they are not JSON."""
    try:
        figures = json.loads(printed)
        return replace(
            result,
            prefill_short=figures["prefill_speed"],
            decode=figures["decode_speed"],
            first_half=figures["first_half_speed"],
            second_half=figures["second_half_speed"],
            disk_bytes_read=figures["decode_read_bytes"] / (result.sequences * output_tokens),
        )
    except (ValueError, KeyError) as error:
        raise FaaSMoEError(
            f"bench.memory_limit.llama_cpp_process has printed something else: {error}"
        ) from error
