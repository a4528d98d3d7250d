"""Decodes several sequences at once, and measures speed and disk reads per token."""

import asyncio
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from bench.support.open_server import OpenServer
from bench.support.requests import StreamTiming
from bench.support.scrape import Scrape

TENANTS = 6
EXPERT_BYTES_READ = "faasmoe:function_read_bytes_total"
COLD_EXPERTS = "faasmoe:function_cold_experts_total"
STEPS, STEP_SECONDS = "faasmoe:steps_total", "faasmoe:step_seconds_total"


@dataclass(frozen=True)
class Decoding:
    """One round. Reads are counted from when every sequence has its first token."""

    timings: Sequence[StreamTiming]
    expert_bytes_per_token: float
    """Bytes of experts read from disk, as the server counts them."""
    disk_bytes_per_token: float
    """Bytes that all processes of the server read from disk, as the kernel counts them."""
    cold_experts_per_token: float
    """Experts that a function had to read from disk during a call."""
    step_ms: Mapping[str, float]
    """Milliseconds per step, by part of the step."""


async def decode(
    server: OpenServer, sequences: int, prompt_tokens: int, output_tokens: int, seed: int
) -> Decoding:
    """One round of `sequences` requests at once. The same seed sends the same requests.

    Raises an `ExceptionGroup` of the requests' errors.
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

    def per_token(metric: str) -> float:
        return (after.metrics.total(metric) - before.metrics.total(metric)) / tokens

    steps = max(1, after.metrics.total(STEPS) - before.metrics.total(STEPS))
    begun = before.metrics.by("part", STEP_SECONDS)
    return Decoding(
        [task.result() for task in asked],
        per_token(EXPERT_BYTES_READ),
        (after.disk_bytes - before.disk_bytes) / tokens,
        per_token(COLD_EXPERTS),
        {
            part: (seconds - begun[part]) / steps * 1000
            for part, seconds in after.metrics.by("part", STEP_SECONDS).items()
        },
    )


class _Progress:
    """Number of tokens of each sequence, and an event for when all have at least one."""

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
    metrics: Scrape
    disk_bytes: float

    @classmethod
    async def now(cls, server: OpenServer, progress: _Progress) -> "_Reading":
        tokens = sum(progress.tokens)
        return cls(tokens, await server.metrics(), await server.disk_bytes())


@dataclass(frozen=True)
class DecodeSpeed:
    """Tokens per second of all sequences together, while all of them decode."""

    whole: float
    first_half: float
    second_half: float


def decode_speed(timings: Sequence[StreamTiming]) -> DecodeSpeed:
    """The speed of answers that were generated at once. The halves have the same number of tokens.

    Raises ValueError if the answers overlap for fewer than two tokens each.
    """
    begin = max(timing.tokens[0] for timing in timings)
    end = min(timing.tokens[-1] for timing in timings)
    moments = sorted(moment for timing in timings for moment in timing.tokens if begin < moment <= end)
    if len(moments) < 2 * len(timings):
        raise ValueError("the answers did not overlap for two tokens each")
    middle = moments[len(moments) // 2 - 1]
    half = bisect_right(moments, middle)
    return DecodeSpeed(
        len(moments) / (end - begin), half / (middle - begin), (len(moments) - half) / (end - middle)
    )


def prefill_speed(timings: Sequence[StreamTiming], prompt_tokens: int) -> float:
    """Prompt tokens per second of all sequences, until the last one has its first token."""
    seconds = max(timing.tokens[0] for timing in timings) - min(timing.sent for timing in timings)
    return len(timings) * prompt_tokens / seconds
