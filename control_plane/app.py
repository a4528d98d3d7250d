"""Connects the parts of the control plane. Each part is an async context that closes what it opened."""

import asyncio
import encodings.unicode_escape  # noqa: F401
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from ipaddress import ip_network
from pathlib import Path

import numpy.ma  # noqa: F401
from yarl import URL

from control_plane.api.authentication import Authentication
from control_plane.api.batches.opening import opened_batches
from control_plane.api.cors import Origins
from control_plane.api.drain import Drain
from control_plane.api.generation import Generation
from control_plane.api.ignored_fields import IgnoredFields
from control_plane.api.models import ServedModels
from control_plane.api.openai.requests import IGNORED_FIELDS
from control_plane.api.routes import Api
from control_plane.api.service import CompletionService
from control_plane.api.text.codec import TextCodec
from control_plane.api.text.generation_config import end_tokens, sampling_defaults
from control_plane.api.text.prompts import PromptEncoder
from control_plane.api.text.request import SamplingDefaults
from control_plane.api.tools.model_format import ModelFormat
from control_plane.autoscaling.autoscaler import Autoscaler
from control_plane.autoscaling.awake import awake_invocations
from control_plane.autoscaling.footprint import Footprint, StepShape, check_limit
from control_plane.autoscaling.process_memory import OwnMemory, trim_heap
from control_plane.config import ServeConfig
from control_plane.deployment.failover import Failover
from control_plane.engine.assembly import build_engine, build_runner
from control_plane.engine.engine import Engine
from control_plane.engine.grammar.compiler import GrammarCompiler
from control_plane.engine.grammar.vocabulary import vocabulary_of
from control_plane.engine.kernels import load_dense_kernel
from control_plane.engine.model.runner import LOGITS_ROWS, ModelRunner
from control_plane.faas.call import InvocationPolicy
from control_plane.faas.connection import Address
from control_plane.faas.gateway_access import GatewayAccess
from control_plane.faas.gateways import Gateways
from control_plane.faas.invocation import ResidentLimits
from control_plane.faas.invoking.invoker import Invoker
from control_plane.http import check_open_files, serving
from control_plane.observability.logs import log_kernel
from control_plane.observability.metrics import Metrics
from control_plane.observability.status import StatusReporter
from control_plane.partition.checkpoint.stored_tokenizer import ModelTokenizer
from control_plane.partition.manifest import Manifest
from control_plane.tenancy.limits.limiter import Limiter, limiter_of
from control_plane.tenancy.storage.database import database_address
from control_plane.tenancy.storage.ledger import Ledger
from control_plane.tenancy.storage.store_thread import StoreThread
from functions.contract.secret import FunctionSecret
from functions.host.memory import memory_limit

# NumPy and Jinja import the modules that nothing here uses, but only in a request: see control_plane/http.py.


@dataclass(frozen=True)
class _Backend:
    """The engine, and its connections to the functions."""

    manifest: Manifest
    gateways: Gateways
    invoker: Invoker
    resident_limits: ResidentLimits
    runner: ModelRunner
    engine: Engine
    codec: TextCodec
    prompts: PromptEncoder
    grammars: GrammarCompiler
    defaults: SamplingDefaults


@dataclass(frozen=True)
class _Tenancy:
    """The tenants, their limits, and the record of their usage."""

    store: StoreThread
    limiter: Limiter
    ledger: Ledger


@asynccontextmanager
async def control_plane(
    partition: Path,
    config: ServeConfig,
    access: Sequence[GatewayAccess],
    secret: FunctionSecret | None = None,
    gateway_bytes: Callable[[], int] = lambda: 0,
) -> AsyncIterator[URL]:
    """Serve a partition's model, whose functions are behind these gateways; yields the API's address.

    With the functions' `secret`, only functions that know it are believed. `gateway_bytes` returns the memory
    of the processes that a gateway in this process has besides functions. Raises `PartitionError` for a bad
    partition, `ConfigError` for a port in use, too small a budget, or too few open files.
    """
    if config.memory_budget is not None:
        check_limit(config.memory_budget, memory_limit())
    manifest = Manifest.load(partition)
    check_open_files(len(manifest.blocks))
    database = database_address(config.database)
    async with (
        Gateways.connect(access, (block.function for block in manifest.blocks), secret) as gateways,
        _loaded(partition, manifest, gateways, config, secret) as backend,
        _tenancy(database, config) as tenancy,
    ):

        def helpers_bytes() -> int:
            return backend.prompts.memory_bytes() + gateway_bytes()

        # Measured last: the budget has to cover everything that was loaded before.
        footprint = build_footprint(partition, manifest, backend.runner, helpers_bytes(), config)
        autoscaler = _autoscaler(backend, footprint, helpers_bytes, config)
        drain = Drain(config.max_queued_per_tenant)
        api = _api(backend, tenancy, autoscaler, drain, config)
        app = api.app()
        async with (
            opened_batches(app, api, database, config.batch_storage) as batches,
            serving(app, config.host, config.port) as url,
            # The engine stops before the server does, so that streams which it cuts off can say so.
            backend.engine.running(),
            autoscaler.running(),
            Failover(manifest, gateways, config.image_prefix, secret).running(),
            drain.at_end(config.drain_seconds),
            batches.running() if batches else nullcontext(),
        ):
            yield url


@asynccontextmanager
async def _loaded(
    partition: Path,
    manifest: Manifest,
    gateways: Gateways,
    config: ServeConfig,
    secret: FunctionSecret | None,
) -> AsyncIterator[_Backend]:
    """Load the model. It takes seconds, so a thread does it: the embedded gateway may run on this loop."""
    invoker = build_invoker(gateways.address_of, gateways.is_absent, config, secret)
    limits = ResidentLimits()
    runner = await asyncio.to_thread(build_runner, partition, manifest, invoker, limits, config)
    log_kernel(load_dense_kernel().name)
    tokenizer = await asyncio.to_thread(ModelTokenizer.load, partition)
    codec = TextCodec(tokenizer, runner.model.sizes.vocab_size)
    by_model = config.sampling_defaults == "model"
    defaults = sampling_defaults(partition) if by_model else SamplingDefaults()
    async with PromptEncoder.running(codec) as prompts:
        engine = build_engine(runner, invoker, end_tokens(partition, codec, prompts), config)
        grammars = await asyncio.to_thread(
            lambda: GrammarCompiler(vocabulary_of(tokenizer, codec.vocab_size, engine.eos_ids))
        )
        yield _Backend(
            manifest, gateways, invoker, limits, runner, engine, codec, prompts, grammars, defaults
        )


@asynccontextmanager
async def _tenancy(database: Path | str, config: ServeConfig) -> AsyncIterator[_Tenancy]:
    """Open the database, and declare the configured tenants in it."""
    async with (
        StoreThread.open(database, "tenants", config.tenants) as store,
        Ledger.open(store, database) as ledger,
    ):
        lease = config.request_timeout + config.drain_seconds
        limiter = limiter_of(store, database, config.max_queued, config.max_queued_per_tenant, lease)
        yield _Tenancy(store, limiter, ledger)


def _autoscaler(
    backend: _Backend, footprint: Footprint, helpers_bytes: Callable[[], int], config: ServeConfig
) -> Autoscaler:
    own = OwnMemory.measure()

    def busy() -> bool:
        status = backend.engine.status()
        return bool(status.running or status.waiting)

    return Autoscaler(
        backend.gateways,
        backend.invoker.statistics,
        footprint,
        config.memory_budget,
        config.idle_timeout,
        own_bytes=lambda: own.used() + helpers_bytes(),
        requests_running=busy,
        limits=backend.resident_limits,
        trim_memory=trim_heap,
        awake_invocations=awake_invocations(backend.manifest),
    )


def _api(
    backend: _Backend,
    tenancy: _Tenancy,
    autoscaler: Autoscaler,
    drain: Drain,
    config: ServeConfig,
) -> Api:
    manifest, engine, statistics = backend.manifest, backend.engine, backend.invoker.statistics
    models = ServedModels(config.served_model_names or (manifest.name,))
    origins = Origins(config.cors_origins)
    authentication = Authentication(tenancy.store, config.open, origins)
    kernel = load_dense_kernel().name
    metrics = Metrics(
        models.default,
        engine.status,
        statistics,
        autoscaler.memory,
        autoscaler.actions,
        tenancy.ledger,
        kernel,
    )
    service = CompletionService(
        engine=engine,
        codec=backend.codec,
        format=ModelFormat.of(backend.codec),
        prompts=backend.prompts,
        grammars=backend.grammars,
        limiter=tenancy.limiter,
        ledger=tenancy.ledger,
        metrics=metrics,
        request_timeout=config.request_timeout,
        log_prompts=config.log_prompts,
        defaults=backend.defaults,
        ignored_fields=IgnoredFields(config.strict_fields, IGNORED_FIELDS, metrics.field_ignored),
        admitted=autoscaler.prompted,
    )
    return Api(
        models=models,
        started=int(time.time()),
        origins=origins,
        authentication=authentication,
        generation=Generation(models, manifest.fingerprint, authentication, service, drain),
        service=service,
        drain=drain,
        status=StatusReporter(manifest, engine, backend.gateways, statistics, autoscaler.memory, kernel),
        metrics=metrics,
    )


def build_invoker(
    gateway_of: Callable[[str], Address],
    is_absent: Callable[[str], bool],
    config: ServeConfig,
    secret: FunctionSecret | None = None,
) -> Invoker:
    """An invoker of functions, which share the `secret` with it.

    `gateway_of` returns the address of the gateway that has a function, `is_absent` whether none has it.
    """
    policy = InvocationPolicy(config.invocation_timeout, config.invocation_deadline)
    networks = [ip_network(network) for network in config.function_networks]
    return Invoker(gateway_of, is_absent, policy, networks, secret)


def build_footprint(
    partition: Path, manifest: Manifest, runner: ModelRunner, helpers_bytes: int, config: ServeConfig
) -> Footprint:
    """The memory that serving needs, with `helpers_bytes` for the processes that belong to this one.

    Raises `ConfigError` for a budget below it.
    """
    trim_heap()
    model, longest = runner.model, runner.kv_cache.max_length
    rows = config.max_batch_tokens
    step = StepShape.of(
        manifest,
        rows=rows if model.chunks_prompts else max(rows, longest),
        dense_width=model.sizes.dense_width,
        logits_rows=max(LOGITS_ROWS, config.max_sequences),
        vocabulary=model.sizes.vocab_size,
        masked=longest if model.has_masks else 0,
    )
    footprint = Footprint.measure(
        manifest,
        partition / manifest.dense.file,
        step,
        kv_cache_bytes=runner.kv_cache.nbytes,
        stored_embedding_bytes=model.stored_embedding_bytes,
    )
    footprint = replace(footprint, control_plane=footprint.control_plane + helpers_bytes)
    if config.memory_budget is not None:
        footprint.check(config.memory_budget)
    return footprint
