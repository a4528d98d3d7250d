"""Puts the parts together: each piece is an async context that closes what it has opened."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import torch
from aiohttp import web
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
from control_plane.partition.manifest import Manifest


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
    engine = await asyncio.to_thread(build_engine, partition, manifest, invoker, config)
    codec = TextCodec(load_tokenizer(partition))
    async with Gateway.connect(gateway_url, credentials) as gateway:
        status = StatusReporter(manifest, engine, gateway, invoker.statistics)
        engine.start()
        try:
            async with serving(Api(manifest.name, engine, codec, status).app(), config.host, config.port) as url:
                yield url
        finally:
            await engine.stop()


def build_invoker(gateway_url: URL, config: ServeConfig) -> Invoker:
    """The way to the functions behind a gateway."""
    address = Address(gateway_url.host or "", gateway_url.port or 80)
    return Invoker(address, InvocationPolicy(config.invocation_timeout, config.invocation_deadline))


def build_engine(partition: Path, manifest: Manifest, invoker: Invoker, config: ServeConfig) -> Engine:
    """The engine, not started yet. Raises `PartitionError`, or `ConfigError` for a KV cache of no page."""
    torch.set_num_threads(config.threads)
    model = load_model(partition, manifest, Dispatcher(manifest, invoker))
    shape = kv_cache_shape(model)
    num_pages = (config.kv_cache_mb << 20) // shape.page_nbytes
    if num_pages == 0:
        raise ConfigError(f"kv_cache_mb: {config.kv_cache_mb} MB hold no page of {shape.page_nbytes} bytes")
    cache = KVCache(shape, num_pages)
    scheduler = Scheduler(cache, config.max_batch_tokens, config.max_sequences)
    context_length = model.config.max_position_embeddings
    return Engine(scheduler, ModelRunner(model, cache), invoker, context_length, eos_token_ids(partition, model))


@asynccontextmanager
async def serving(app: web.Application, host: str, port: int) -> AsyncIterator[URL]:
    """Run an aiohttp application; yields its address. Raises `ConfigError` when the port cannot be bound."""
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=5)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
        yield URL.build(scheme="http", host=host, port=runner.addresses[0][1])
    finally:
        await runner.cleanup()


async def until_stopped() -> None:
    """Wait for SIGINT or SIGTERM."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    await stopped.wait()
