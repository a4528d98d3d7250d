"""Builds the engine for a partition: dense model, KV cache, dispatcher, prefetcher and scheduler."""

import os
from pathlib import Path

from control_plane.config import ServeConfig
from control_plane.engine.engine import Engine
from control_plane.engine.experts.dispatcher import Dispatcher
from control_plane.engine.experts.predictor import ExpertPredictor
from control_plane.engine.experts.prefetcher import Prefetcher
from control_plane.engine.kernels import DenseKernel, load_dense_kernel
from control_plane.engine.loader import load_model
from control_plane.engine.model.dense_model import DenseModel, MemorySize
from control_plane.engine.model.runner import ModelRunner
from control_plane.engine.scheduling.interruption import Interruption
from control_plane.engine.scheduling.policy import POLICIES
from control_plane.engine.scheduling.scheduler import Scheduler
from control_plane.engine.state.sequence_memory import SequenceMemory
from control_plane.engine.state.stopwatch import Stopwatch
from control_plane.errors import ConfigError
from control_plane.faas.invocation import ExpertInvoker, ResidentLimits
from control_plane.partition.manifest import Manifest
from functions.kernels import MAX_THREADS
from functions.kernels.selection import KERNEL_VARIABLE

SMALL_DENSE_BYTES = 256 << 20
"""A smaller dense part is slower with a second thread (measured on two cores: docs/benchmarks.md)."""

LANES_PER_SEQUENCE = 2
"""Sequences that may hold memory, for each sequence that one step computes. The others pause, so that a new
tenant's sequence can start before one of them ends. A lane takes no memory until it is used."""
LANES_FOR_PREFIXES = 256
"""Ended sequences that may hold memory."""


def build_runner(
    partition: Path,
    manifest: Manifest,
    invoker: ExpertInvoker,
    resident_limits: ResidentLimits,
    config: ServeConfig,
) -> ModelRunner:
    """Load the dense model and connect its MoE layers to the functions. Takes seconds.

    Raises `PartitionError`, or `ConfigError` when the KV cache cannot be allocated, or this machine does not
    run the kernel that the environment names.
    """
    kernel = _dense_kernel()
    threads = min(config.threads or _default_threads(manifest), MAX_THREADS)
    model = load_model(partition, manifest, threads, kernel)
    kv_cache = _kv_cache(model, config, threads)
    interruption, stopwatch = Interruption(), Stopwatch()
    predictor = ExpertPredictor.of(model.router, manifest) if config.prefetch else None
    prefetcher = Prefetcher(manifest, predictor, invoker) if predictor else None
    dispatcher = Dispatcher(manifest, invoker, resident_limits, interruption, stopwatch, prefetcher)
    model.attach(dispatcher)
    return ModelRunner(model, kv_cache, dispatcher, interruption, stopwatch, prefetcher)


def build_engine(
    runner: ModelRunner, invoker: ExpertInvoker, end_tokens: frozenset[int], config: ServeConfig
) -> Engine:
    """The engine around the runner; its thread is not started yet. `end_tokens` end an answer."""
    policy = POLICIES[config.scheduling]()
    model = runner.model
    scheduler = Scheduler(
        runner.kv_cache,
        config.max_batch_tokens,
        config.max_sequences,
        policy,
        model.chunks_prompts,
        config.prefix_cache,
    )
    return Engine(scheduler, runner, invoker, model.sizes.context_length, end_tokens)


def _dense_kernel() -> DenseKernel:
    try:
        return load_dense_kernel()
    except ValueError as error:
        raise ConfigError(f"{KERNEL_VARIABLE}: {error}") from None


def _kv_cache(model: DenseModel, config: ServeConfig, threads: int) -> SequenceMemory:
    """Raises `ConfigError` for less than a page of memory, or more addresses than the machine has."""
    num_pages = (config.kv_cache_mb << 20) // model.page_nbytes
    if num_pages == 0:
        raise ConfigError(f"kv_cache_mb: {config.kv_cache_mb} MB hold no page of {model.page_nbytes} bytes")
    num_lanes = LANES_PER_SEQUENCE * config.max_sequences + (LANES_FOR_PREFIXES if config.prefix_cache else 0)
    size = MemorySize(num_pages, num_lanes, model.sizes.context_length, threads)
    try:
        return model.new_memory(size)
    except (MemoryError, OSError, OverflowError, ValueError) as error:
        raise ConfigError(
            f"max_sequences: this machine has no addresses for {size.num_lanes} sequences of "
            f"{size.max_length} tokens: {error}"
        ) from error


def _default_threads(manifest: Manifest) -> int:
    """One thread for a small model: waking a second one takes longer than its small products."""
    return 1 if manifest.dense.nbytes < SMALL_DENSE_BYTES else len(os.sched_getaffinity(0))
