"""Puts the parts together: each piece is an async context that closes what it has opened."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import torch
from yarl import URL

from control_plane.api.routes import Api
from control_plane.api.status import StatusReporter
from control_plane.api.text import TextCodec
from control_plane.config import Credentials, ServeConfig
from control_plane.engine.dispatcher import Dispatcher
from control_plane.engine.engine import Engine
from control_plane.engine.kv_cache import KVCache
from control_plane.engine.model_loader import eos_token_ids, load_model, load_tokenizer
from control_plane.engine.model_runner import ModelRunner, kv_cache_shape
from control_plane.engine.scheduler import Scheduler
from control_plane.errors import ConfigError
from control_plane.faas.connection import Address
from control_plane.faas.gateway import Gateway
from control_plane.faas.invoker import InvocationPolicy, Invoker
from control_plane.http import serving
from control_plane.partition.manifest import Manifest

SMALL_DENSE_BYTES = 256 << 20
"""Below this, a second thread makes the dense part slower (measured on two cores: docs/benchmarks.md)."""


@asynccontextmanager
async def control_plane(
    partition: Path, config: ServeConfig, gateway_url: URL, credentials: Credentials | None
) -> AsyncIterator[URL]:
    """Serve a partition's model; yields the address of the API.

    Raises `PartitionError` for a bad partition, `ConfigError` for a port in use.
    """
    manifest = Manifest.load(partition)
    invoker = build_invoker(gateway_url, config)
    # Loading takes seconds, in which the event loop may have a gateway to run.
    runner = await asyncio.to_thread(build_runner, partition, manifest, invoker, config)
    engine = build_engine(partition, runner, invoker, config)
    codec = TextCodec(load_tokenizer(partition), runner.model.config.vocab_size)
    async with Gateway.connect(gateway_url, credentials) as gateway:
        status = StatusReporter(manifest, engine, gateway, invoker.statistics)
        app = Api(manifest.name, engine, codec, status).app()
        async with serving(app, config.host, config.port) as url, _started(engine):
            yield url


@asynccontextmanager
async def _started(engine: Engine) -> AsyncIterator[None]:
    """The engine's thread. It ends before the server does: a stream that it cuts off can still say so."""
    engine.start()
    try:
        yield
    finally:
        await engine.stop()


def build_invoker(gateway_url: URL, config: ServeConfig) -> Invoker:
    """The way to the functions behind a gateway."""
    address = Address(gateway_url.host or "", gateway_url.port or 80)
    return Invoker(address, InvocationPolicy(config.invocation_timeout, config.invocation_deadline))


def build_runner(partition: Path, manifest: Manifest, invoker: Invoker, config: ServeConfig) -> ModelRunner:
    """The dense model and its cache. Raises `PartitionError`, or `ConfigError` for an impossible cache."""
    torch.set_num_threads(config.threads or _threads_for(manifest))
    model = load_model(partition, manifest, Dispatcher(manifest, invoker))
    shape = kv_cache_shape(model)
    num_pages = (config.kv_cache_mb << 20) // shape.page_nbytes
    if num_pages == 0:
        raise ConfigError(f"kv_cache_mb: {config.kv_cache_mb} MB hold no page of {shape.page_nbytes} bytes")
    try:
        return ModelRunner(model, KVCache(shape, num_pages))
    except (MemoryError, RuntimeError) as error:
        raise ConfigError(f"kv_cache_mb: this machine cannot map {config.kv_cache_mb} MB") from error


def build_engine(partition: Path, runner: ModelRunner, invoker: Invoker, config: ServeConfig) -> Engine:
    """The engine, not started yet."""
    scheduler = Scheduler(runner.kv_cache, config.max_batch_tokens, config.max_sequences)
    context_length = runner.model.config.max_position_embeddings
    return Engine(scheduler, runner, invoker, context_length, eos_token_ids(partition, runner.model))


def _threads_for(manifest: Manifest) -> int:
    """One thread for a small model: waking another would take longer than its small products."""
    return 1 if manifest.dense.nbytes < SMALL_DENSE_BYTES else len(os.sched_getaffinity(0))
