"""Serves a partition in a test with a real gateway, real function processes and an engine."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from yarl import URL

from control_plane.api.text.generation_config import named_end_tokens
from control_plane.app import build_invoker
from control_plane.config import ServeConfig
from control_plane.deployment.deploy import deploy_all
from control_plane.engine.assembly import build_engine, build_runner
from control_plane.engine.engine import Engine
from control_plane.engine.model.runner import ModelRunner
from control_plane.engine.scheduling.policy import FirstComeFirstServed
from control_plane.engine.scheduling.scheduler import Scheduler
from control_plane.engine.state.sequence import SamplingParams, Sequence
from control_plane.faas.client import Gateway
from control_plane.faas.invocation import ResidentLimits
from control_plane.gateway import embedded_gateway
from control_plane.partition.manifest import Manifest


@dataclass(frozen=True)
class Served:
    """A served partition: the model runner, and the running engine around it."""

    runner: ModelRunner
    engine: Engine
    gateway_url: URL

    def prompt_logits(self, prompt: torch.Tensor) -> torch.Tensor:
        """The logits [vocabulary] after the prompt [1, n]. The engine must be idle."""
        alone = sequence(prompt, 1)
        scheduler = Scheduler(
            self.runner.kv_cache,
            max_batch_tokens=prompt.numel(),
            max_sequences=1,
            policy=FirstComeFirstServed(),
        )
        scheduler.add(alone)
        try:
            batch = scheduler.schedule()
            return torch.from_numpy(self.runner.next_logits(self.runner.run(batch), batch)[0])
        finally:
            scheduler.remove(alone)


@asynccontextmanager
async def served(partition: Path, **settings: Any) -> AsyncIterator[Served]:
    """Deploy the partition's functions on an embedded gateway, and start an engine."""
    manifest = Manifest.load(partition)
    # Tests count the steps of prompts that others have sent before.
    config = ServeConfig(threads=1, kv_cache_mb=32, **{"prefix_cache": False, **settings})
    async with embedded_gateway(partition, "127.0.0.1", 0, None, idle_after=900.0) as url:
        async with Gateway.connect(url, None) as gateway:
            address = gateway.address
            assert [change async for change in deploy_all(manifest, [gateway])]
        invoker = build_invoker(lambda _: address, lambda _: True, config)
        runner = await asyncio.to_thread(build_runner, partition, manifest, invoker, ResidentLimits(), config)
        engine = build_engine(runner, invoker, named_end_tokens(partition), config)
        async with engine.running():
            yield Served(runner, engine, url)


def sequence(prompt: torch.Tensor, max_tokens: int) -> Sequence:
    """A greedy sequence of the prompt [1, n]."""
    return Sequence("test", "tenant", prompt[0].tolist(), SamplingParams(max_tokens))
