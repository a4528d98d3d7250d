"""Measures FaaSMoE under one memory limit: runs `faasmoe up` in a control group."""

import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median

from bench.memory_limit.decoding import Decoding, decode, decode_speed, prefill_speed
from bench.memory_limit.results import Machine, Result
from bench.memory_limit.scenarios import NO_PREFETCH, Scenario
from bench.memory_limit.step_weights import StepWeights
from bench.support import requests
from bench.support.cgroup import Cgroup, cgroup
from bench.support.open_server import OpenServer
from bench.support.page_cache import forget
from bench.support.process_tree import ProcessTree, Sample, sampled
from bench.support.processes import up

SHORT_PROMPT, LONG_PROMPT = 64, 512
BUDGET_SHARE = 0.94
"""The memory budget as a share of the limit. The rest is for page tables and page cache."""
KV_CACHE_MB, KV_CACHE_MB_WITH_LIMIT = 1024, 256
"""Enough for 32 sequences, and for six."""
START_SECONDS = 600.0
"""The gateway reads each block once, when it is deployed."""
SAMPLE_SECONDS, SAMPLING_SHARE = 1.0, 0.02
"""Interval of memory samples, and the share of time that they may take."""


@dataclass(frozen=True)
class DecodeLoad:
    """The requests to send to each system."""

    rounds: int
    output_tokens: int
    """Tokens of each answer."""


@dataclass(frozen=True)
class LimitedFaaSMoE:
    """A partition that is served in one scenario."""

    partition: Path
    scenario: Scenario
    kv_cache_mb: int | None = None
    """Memory for sequences; None for the default of this benchmark."""

    async def measure(
        self, load: DecodeLoad, weights: StepWeights, machine: Machine
    ) -> AsyncGenerator[Result, None]:
        """A result for each number of sequences at once. One server, which starts cold, serves all."""
        began = time.monotonic()
        async with self._server() as (server, group):
            start_seconds = time.monotonic() - began
            for count in self.scenario.sequences:
                with sampled(server.tree, SAMPLE_SECONDS, SAMPLING_SHARE) as samples:
                    long = await self._prefill_long(server, load) if count == 1 else None
                    rounds = [
                        await decode(server, count, SHORT_PROMPT, load.output_tokens, 1000 * number)
                        for number in range(load.rounds)
                    ]
                result = self.scenario.result(count, prefill_long=long, start_seconds=start_seconds)
                result = with_memory(result, samples, group)
                yield with_speeds(result, rounds, weights, machine)

    async def _prefill_long(self, server: OpenServer, load: DecodeLoad) -> float:
        timings = [
            await server.ask("tenant-0", LONG_PROMPT, 1, seed=500 + number) for number in range(load.rounds)
        ]
        return median(prefill_speed([timing], LONG_PROMPT) for timing in timings)

    @asynccontextmanager
    async def _server(self) -> AsyncIterator[tuple[OpenServer, Cgroup | None]]:
        vocab_size = json.loads((self.partition / "config.json").read_text())["vocab_size"]
        forget([self.partition / "dense.safetensors", *(self.partition / "blocks").iterdir()])
        limit = self.scenario.limit_bytes
        settings: Mapping[str, object] = {
            "prefetch": self.scenario.system != NO_PREFETCH,
            "kv_cache_mb": self.kv_cache_mb or (KV_CACHE_MB if limit is None else KV_CACHE_MB_WITH_LIMIT),
        }
        options = [] if limit is None else ["--memory-budget", f"{limit * BUDGET_SHARE:.0f}"]
        with cgroup(limit) as group:
            async with (
                up(self.partition, settings, options, group, START_SECONDS) as (pid, url),
                requests.session() as client,
            ):
                yield OpenServer(client, url, vocab_size, ProcessTree(pid)), group


def with_memory(result: Result, samples: Sequence[Sample], group: Cgroup | None) -> Result:
    """The result with the mean and the peak of the samples, and the figures of the control group."""
    sizes = [sample.nbytes for sample in samples]
    return replace(
        result,
        memory_mean=mean(sizes),
        memory_peak=max(sizes),
        charged=group.used_bytes() if group else None,
        out_of_memory_kills=group.out_of_memory_kills() if group else None,
    )


def with_speeds(result: Result, rounds: Sequence[Decoding], weights: StepWeights, machine: Machine) -> Result:
    """The result with the medians of the rounds, and their share of the machine's maximum speed."""
    speeds = [decode_speed(each.timings) for each in rounds]
    decoded = median(speed.whole for speed in speeds)
    disk = median(each.disk_bytes_per_token for each in rounds)
    used = weights.nbytes(result.sequences)
    return replace(
        result,
        prefill_short=median(prefill_speed(each.timings, SHORT_PROMPT) for each in rounds),
        decode=decoded,
        first_half=speeds[0].first_half,
        second_half=speeds[0].second_half,
        expert_bytes_read=median(each.expert_bytes_per_token for each in rounds),
        disk_bytes_read=disk,
        cold_experts=median(each.cold_experts_per_token for each in rounds),
        step_ms={part: mean(each.step_ms[part] for each in rounds) for part in rounds[0].step_ms},
        weight_bytes_used=used / result.sequences,
        share_of_limit=decoded / machine.tokens_per_second(used / result.sequences, disk),
        machine=machine,
    )
