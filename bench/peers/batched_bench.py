"""Runs the program llama-batched-bench of llama.cpp or ik_llama.cpp, and reads the table that it prints."""

import asyncio
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.memory_limit.faasmoe import LONG_PROMPT, SHORT_PROMPT
from bench.memory_limit.scenarios import NO_LIMIT, SEQUENCES_WITHOUT_LIMIT
from bench.peers.table import Speed, Speeds, decode_row, prefill_row
from bench.support.cgroup import cgroup
from bench.support.page_cache import forget
from control_plane.errors import FaaSMoEError
from control_plane.quantities import parse_bytes

RUN_SECONDS = 1800.0
ROW = re.compile(r"^\|((?: *[\d.]+ \|){10})", re.MULTILINE)
"""Prompt tokens, generated tokens, sequences, cache, then seconds and tokens/s: prefill, decode, both."""


@dataclass(frozen=True)
class Dialect:
    """The options in which the two programs differ."""

    title: str
    in_memory: Sequence[str]
    """Options that read weights into memory once, and repack them for this processor."""
    mapped: Sequence[str]
    """Options that map weights from the file, as they are there."""


LLAMA_CPP = Dialect("llama.cpp", ("--load-mode", "none"), ("--load-mode", "mmap", "--no-repack"))
IK_LLAMA_CPP = Dialect("ik_llama.cpp", ("--run-time-repack",), ())


@dataclass(frozen=True)
class BatchedBench:
    """A program with a model."""

    dialect: Dialect
    program: Path
    gguf: Path
    threads: int
    output_tokens: int
    """Tokens that each sequence generates."""

    @property
    def title(self) -> str:
        """The column of the table."""
        return f"{self.dialect.title} {self.gguf.stem}"

    async def speeds(self, limit: str) -> Speeds:
        """One round: all rows under the limit. Raises `FaaSMoEError` if the program fails."""
        if limit != NO_LIMIT:
            mapped = await self._run(limit, (SHORT_PROMPT,), (1,), self.dialect.mapped)
            return {decode_row(1, limit): mapped[SHORT_PROMPT, 1].decode}
        return await self.all_speeds(limit, SEQUENCES_WITHOUT_LIMIT)

    async def all_speeds(self, limit: str, sequences: Sequence[int]) -> Speeds:
        """Prefill of both prompts, and decoding for these numbers of sequences, 1 among them.

        Weights are read into memory if there is no limit, else mapped. Raises `FaaSMoEError` like `speeds`.
        """
        options = self.dialect.in_memory if limit == NO_LIMIT else self.dialect.mapped
        alone = await self._run(limit, (SHORT_PROMPT, LONG_PROMPT), (1,), options)
        # Each sequence has a prompt of its own: a shared one cannot be computed for models that keep states.
        several = [count for count in sequences if count > 1]
        together = await self._run(limit, (SHORT_PROMPT,), several, options)
        return {
            decode_row(1, limit): alone[SHORT_PROMPT, 1].decode,
            **{decode_row(count, limit): together[SHORT_PROMPT, count].decode for count in several},
            **{prefill_row(prompt): alone[prompt, 1].prefill for prompt in (SHORT_PROMPT, LONG_PROMPT)},
        }

    async def _run(
        self, limit: str, prompts: Sequence[int], sequences: Sequence[int], options: Sequence[str]
    ) -> Mapping[tuple[int, int], "Measured"]:
        """Speeds by prompt tokens and sequences at once, from a process that starts cold."""
        context = max(sequences) * (max(prompts) + self.output_tokens)
        command = [str(self.program.absolute()), "-m", str(self.gguf.absolute())]
        command += ["-t", str(self.threads), "-c", str(context)]
        command += ["-npp", _listed(prompts), "-ntg", str(self.output_tokens)]
        command += ["-npl", _listed(sequences), *options]
        # The limit counts the file's pages only if this process is the first to read them.
        forget([self.gguf])
        limit_bytes = None if limit == NO_LIMIT else parse_bytes(limit)
        # ik_llama.cpp writes a log to its working directory.
        with cgroup(limit_bytes) as group, tempfile.TemporaryDirectory() as folder:
            process = await asyncio.create_subprocess_exec(
                *(group.command(command) if group else command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                cwd=folder,
            )
            try:
                printed, _ = await asyncio.wait_for(process.communicate(), RUN_SECONDS)
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        text = printed.decode(errors="replace")
        measured = read_table(text)
        wanted = {(prompt, count) for prompt in prompts for count in sequences}
        if process.returncode or not wanted <= measured.keys():
            last = (text.strip().splitlines() or ["nothing printed"])[-1]
            raise FaaSMoEError(f"{self.title} has ended with {process.returncode}: {last}")
        return measured


@dataclass(frozen=True)
class Measured:
    """A row of the program's table."""

    prefill: Speed
    decode: Speed


def read_table(printed: str) -> Mapping[tuple[int, int], Measured]:
    """The rows that a program has printed among other things, by prompt tokens and sequences at once."""
    rows = [[float(cell) for cell in found[1].split("|")[:-1]] for found in ROW.finditer(printed)]
    return {(int(row[0]), int(row[2])): Measured(Speed(row[5]), Speed(row[7])) for row in rows}


def _listed(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))
