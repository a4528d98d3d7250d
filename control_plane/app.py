"""Puts the parts together: each piece is an async context that closes what it has opened."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import torch
from yarl import URL

from control_plane.api.authentication import Authentication
from control_plane.api.drain import Drain
from control_plane.api.routes import Api
from control_plane.api.service import Generations
from control_plane.api.text.codec import TextCodec
from control_plane.autoscaling.autoscaler import Autoscaler
from control_plane.autoscaling.footprint import HEAP_BYTES, Footprint, StepShape, block_sizes, check_limit
from control_plane.autoscaling.process_memory import (
    OwnMemory,
    bound_product_caches,
    give_back,
    unread_bytes,
    used_bytes,
)
from control_plane.config import ServeConfig
from control_plane.deployment.failover import Failover
from control_plane.engine.engine import Engine, EngineStatus
from control_plane.engine.experts.dispatcher import Dispatcher
from control_plane.engine.experts.predictor import ExpertPredictor
from control_plane.engine.experts.prefetcher import Prefetcher
from control_plane.engine.model.kv_cache import KVCache
from control_plane.engine.model.layers import StoredEmbedding
from control_plane.engine.model.loader import eos_token_ids, load_model, load_tokenizer
from control_plane.engine.model.runner import LOGITS_ROWS, ModelRunner, kv_cache_shape
from control_plane.engine.scheduling.interruption import Interruption
from control_plane.engine.scheduling.scheduler import Scheduler
from control_plane.engine.stopwatch import Stopwatch
from control_plane.errors import ConfigError, GatewayError
from control_plane.faas.client import Gateway
from control_plane.faas.connection import Address
from control_plane.faas.gateways import Gateways
from control_plane.faas.invoker import InvocationPolicy, Invoker
from control_plane.gateway_access import GatewayAccess
from control_plane.http import serving
from control_plane.observability.metrics import Metrics
from control_plane.observability.status import StatusReporter
from control_plane.partition.manifest import Manifest
from control_plane.tenancy.limits.admission import Admission
from control_plane.tenancy.limits.limiter import Limiter, LocalLimiter
from control_plane.tenancy.storage.database import database_address, is_postgres
from control_plane.tenancy.storage.ledger import Ledger
from control_plane.tenancy.storage.store_thread import StoreThread
from functions.host.memory import memory_limit

logger = logging.getLogger(__name__)

SMALL_DENSE_BYTES = 256 << 20
"""Below this, a second thread makes the dense part slower (measured on two cores: docs/benchmarks.md)."""

LANES_PER_SEQUENCE = 2
"""Sequences that may have memory for each that a step computes: the others pause, so that newcomers of
other tenants need not wait for one to end. A lane costs nothing before it is used."""


@asynccontextmanager
async def control_plane(
    partition: Path, config: ServeConfig, access: Sequence[GatewayAccess]
) -> AsyncIterator[URL]:
    """Serve a partition's model, whose functions are behind these gateways; yields the address of the API.

    Raises `PartitionError` for a bad partition, `ConfigError` for a port in use.
    """
    if config.memory_budget is not None:
        check_limit(config.memory_budget, memory_limit())
    manifest = Manifest.load(partition)
    async with AsyncExitStack() as stack:
        connected = [await stack.enter_async_context(Gateway.connect(*each)) for each in access]
        gateways = Gateways(connected, frozenset(block.function for block in manifest.blocks))
        with suppress(GatewayError):
            # Who is where, before the first call.
            await gateways.functions()
        invoker = build_invoker(gateways.address_of, config)
        # Loading takes seconds, in which the event loop may have a gateway to run.
        runner, dispatcher = await asyncio.to_thread(build_runner, partition, manifest, invoker, config)
        engine = build_engine(partition, runner, invoker, config)
        codec = TextCodec(load_tokenizer(partition), runner.model.config.vocab_size)
        database = database_address(config.database)
        drain = Drain(config.max_queued_per_tenant)
        store = await stack.enter_async_context(StoreThread.open(database, "tenants"))
        await store.run(lambda opened: opened.declare(config.tenants))
        ledger = await stack.enter_async_context(Ledger.open(database))
        autoscaler = Autoscaler(
            gateways,
            invoker.statistics,
            build_footprint(partition, manifest, runner, config),
            config.memory_budget,
            config.idle_timeout,
            own_bytes=OwnMemory.measure().used,
            busy=lambda: _busy(engine.status()),
            tell=lambda limits: setattr(dispatcher, "resident_limits", limits),
            give_back=give_back,
        )
        metrics = Metrics(
            manifest.name, engine.status, invoker.statistics, autoscaler.memory, autoscaler.actions
        )
        api = Api(
            model=manifest.name,
            fingerprint=manifest.fingerprint,
            started=int(time.time()),
            authentication=Authentication(store, config.open),
            generations=Generations(
                engine=engine,
                codec=codec,
                limiter=_limiter(store, database, config),
                ledger=ledger,
                metrics=metrics,
                request_timeout=config.request_timeout,
                log_prompts=config.log_prompts,
                admitted=autoscaler.prompted,
            ),
            drain=drain,
            status=StatusReporter(manifest, engine, gateways, invoker.statistics, autoscaler.memory),
            metrics=metrics,
        )
        async with (
            serving(api.app(), config.host, config.port) as url,
            _started(engine),
            autoscaler.running(),
            Failover(manifest, gateways, config.image_prefix).running(),
            _drained(drain, config.drain_seconds),
        ):
            yield url


def _limiter(store: StoreThread, database: Path | str, config: ServeConfig) -> Limiter:
    """Control planes that share a database share tenants' limits, too."""
    bounds = config.max_queued, config.max_queued_per_tenant
    if not is_postgres(database):
        return LocalLimiter(Admission(*bounds))
    # Only who has one needs the driver.
    from control_plane.tenancy.limits.shared_limiter import SharedLimiter

    lease = config.request_timeout + config.drain_seconds
    return SharedLimiter(store, *bounds, lease)


@asynccontextmanager
async def _drained(drain: Drain, seconds: float) -> AsyncIterator[None]:
    """At the end, running requests have so many seconds to come to theirs, or until a second signal."""
    try:
        yield
    finally:
        if drain.in_progress:
            logger.warning("finishing %d requests, for up to %g s", drain.in_progress, seconds)
        if not await drain.finish(seconds):
            logger.warning("%d requests are cut off", drain.in_progress)


@asynccontextmanager
async def _started(engine: Engine) -> AsyncIterator[None]:
    """The engine's thread. It ends before the server does: a stream that it cuts off can still say so."""
    engine.start()
    try:
        yield
    finally:
        await engine.stop()


def build_invoker(gateway_of: Callable[[str], Address], config: ServeConfig) -> Invoker:
    """The way to the functions, given behind which gateway each is."""
    policy = InvocationPolicy(
        config.invocation_timeout, config.invocation_deadline, gateway_interval=gateway_interval(config)
    )
    return Invoker(gateway_of, policy)


def gateway_interval(config: ServeConfig) -> float:
    """How often a call of a busy function goes through the gateway, which might take it for idle. Seconds."""
    return min(InvocationPolicy.gateway_interval, config.idle_timeout / 3)


def build_runner(
    partition: Path, manifest: Manifest, invoker: Invoker, config: ServeConfig
) -> tuple[ModelRunner, Dispatcher]:
    """The dense model with its cache, and what sends its rows to the functions.

    Raises `PartitionError`, or `ConfigError` for an impossible cache.
    """
    bound_product_caches()
    torch.set_num_threads(config.threads or _threads_for(manifest))
    interruption = Interruption()
    stopwatch = Stopwatch()
    dispatcher = Dispatcher(manifest, invoker, interruption, stopwatch)
    model = load_model(partition, manifest, dispatcher)
    if config.prefetch:
        dispatcher.prefetcher = Prefetcher(manifest, ExpertPredictor.of(model, manifest), invoker)
    shape = kv_cache_shape(model)
    num_pages = (config.kv_cache_mb << 20) // shape.page_nbytes
    if num_pages == 0:
        raise ConfigError(f"kv_cache_mb: {config.kv_cache_mb} MB hold no page of {shape.page_nbytes} bytes")
    lanes = LANES_PER_SEQUENCE * config.max_sequences
    try:
        cache = KVCache(shape, num_pages, lanes, model.config.max_position_embeddings)
    except (MemoryError, OSError, OverflowError, ValueError) as error:
        raise ConfigError(
            f"max_sequences: this machine has no addresses for {lanes} sequences of "
            f"{model.config.max_position_embeddings} tokens: {error}"
        ) from error
    return ModelRunner(model, cache, interruption, dispatcher.prefetcher, stopwatch), dispatcher


def build_footprint(
    partition: Path, manifest: Manifest, runner: ModelRunner, config: ServeConfig
) -> Footprint:
    """What serving takes of memory, now that all is loaded. Raises `ConfigError` for a budget below it."""
    give_back()
    model, cache = runner.model.config, runner.kv_cache
    step = StepShape(
        rows=config.max_batch_tokens,
        hidden_size=manifest.hidden_size,
        intermediate_size=getattr(model, "shared_expert_intermediate_size", model.intermediate_size),
        experts_per_row=manifest.num_experts_per_tok,
        logits_rows=max(LOGITS_ROWS, config.max_sequences),
        vocabulary=model.vocab_size,
        context=cache.max_length,
    )
    embedding = runner.model.model.embed_tokens
    never_read = embedding.nbytes if isinstance(embedding, StoredEmbedding) else 0
    footprint = Footprint(
        used_bytes()
        + unread_bytes(partition / manifest.dense.file)
        - never_read
        + cache.num_pages * cache.shape.page_nbytes
        + step.nbytes
        + HEAP_BYTES,
        manifest.expert_nbytes,
        block_sizes(manifest),
    )
    if config.memory_budget is not None:
        footprint.check(config.memory_budget)
    return footprint


def build_engine(partition: Path, runner: ModelRunner, invoker: Invoker, config: ServeConfig) -> Engine:
    """The engine, not started yet."""
    fair = config.scheduling == "fair"
    scheduler = Scheduler(runner.kv_cache, config.max_batch_tokens, config.max_sequences, fair)
    context_length = runner.model.config.max_position_embeddings
    return Engine(scheduler, runner, invoker, context_length, eos_token_ids(partition, runner.model))


def _busy(status: EngineStatus) -> bool:
    return bool(status.running or status.waiting)


def _threads_for(manifest: Manifest) -> int:
    """One thread for a small model: waking another would take longer than its small products."""
    return 1 if manifest.dense.nbytes < SMALL_DENSE_BYTES else len(os.sched_getaffinity(0))
