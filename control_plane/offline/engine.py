"""An engine for commands that run a partition on this machine, without a server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from control_plane.api.text.codec import TextCodec
from control_plane.api.text.generation_config import end_tokens
from control_plane.api.text.prompts import PromptEncoder
from control_plane.app import build_invoker
from control_plane.config import ServeConfig
from control_plane.deployment.deploy import deploy_all
from control_plane.engine.assembly import build_engine, build_runner
from control_plane.engine.engine import Engine
from control_plane.engine.model.runner import ModelRunner
from control_plane.faas.client import Gateway
from control_plane.faas.invocation import ResidentLimits
from control_plane.gateway import embedded_gateway
from control_plane.partition.checkpoint.stored_tokenizer import ModelTokenizer
from control_plane.partition.manifest import Manifest

IDLE_AFTER = 900.0
"""Seconds without a call before a function is put to sleep: longer than any pause between prompts."""


@asynccontextmanager
async def offline_engine(
    partition: Path, manifest: Manifest
) -> AsyncIterator[tuple[ModelRunner, PromptEncoder, Engine]]:
    """A running engine and its prompts' encoder, with the functions behind an embedded gateway.

    All end with the context. Raises `PartitionError` and `GatewayError`.
    """
    config = ServeConfig(prefetch=False, prefix_cache=False)
    async with embedded_gateway(partition, "127.0.0.1", 0, None, IDLE_AFTER) as url:
        async with Gateway.connect(url, None) as gateway:
            address = gateway.address
            async for _ in deploy_all(manifest, [gateway]):
                pass
        # This gateway is a part of this process: what it does not find is not there.
        invoker = build_invoker(lambda _: address, lambda _: True, config)
        runner = await asyncio.to_thread(build_runner, partition, manifest, invoker, ResidentLimits(), config)
        codec = TextCodec(ModelTokenizer.load(partition), runner.model.sizes.vocab_size)
        async with PromptEncoder.running(codec, workers=1) as encoder:
            engine = build_engine(runner, invoker, end_tokens(partition, codec, encoder), config)
            async with engine.running():
                yield runner, encoder, engine
