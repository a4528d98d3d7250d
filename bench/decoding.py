"""Sequences of several tenants, generated at once: when tokens come, and what is read from disk for them."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from bench.open_server import OpenServer
from bench.requests import Timing

TENANTS = 6
EXPERT_BYTES_READ = "faasmoe:function_read_bytes_total"


@dataclass(frozen=True)
class Decoding:
    """One round. What was read is counted from the moment when every sequence has its first token."""

    timings: Sequence[Timing]
    expert_bytes_per_token: float
    """Read from disk, as the server counts."""
    disk_bytes_per_token: float
    """As the kernel does, for all that the server's processes read."""


async def decode(
    server: OpenServer, sequences: int, prompt_tokens: int, output_tokens: int, seed: int
) -> Decoding:
    """One round of that many requests at once; the same seed asks for the same again.

    Raises `ExceptionGroup` of what was wrong with requests.
    """
    progress = _Progress(sequences)
    async with asyncio.TaskGroup() as group:
        asked = [
            group.create_task(
                server.ask(
                    tenant=f"tenant-{number % TENANTS}",
                    prompt_tokens=prompt_tokens,
                    output_tokens=output_tokens,
                    seed=seed + number,
                    on_token=partial(progress.token, number),
                )
            )
            for number in range(sequences)
        ]
        await progress.all_begun.wait()
        before = await _Reading.now(server, progress)
    after = await _Reading.now(server, progress)
    tokens = max(1, after.tokens - before.tokens)
    return Decoding(
        [task.result() for task in asked],
        (after.expert_bytes - before.expert_bytes) / tokens,
        (after.disk_bytes - before.disk_bytes) / tokens,
    )


class _Progress:
    """How many tokens each sequence has, and whether all have one."""

    def __init__(self, sequences: int) -> None:
        self.tokens = [0] * sequences
        self.all_begun = asyncio.Event()

    def token(self, number: int) -> None:
        self.tokens[number] += 1
        if all(self.tokens):
            self.all_begun.set()


@dataclass(frozen=True)
class _Reading:
    tokens: int
    expert_bytes: float
    disk_bytes: float

    @classmethod
    async def now(cls, server: OpenServer, progress: _Progress) -> "_Reading":
        tokens = sum(progress.tokens)
        return cls(tokens, await server.total(EXPERT_BYTES_READ), await server.disk_bytes())
