"""Begins and resumes a run of `faasmoe bench run`: makes the model and its partitions, and measures."""

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.comparison import environment
from bench.comparison.comparison import Comparison, Task
from bench.comparison.measuring.recording import Recording, RunDescription
from bench.comparison.measuring.replay import PromptTokens
from bench.comparison.progress import ProgressListener
from bench.comparison.settings import RunSettings
from bench.comparison.strategies.deployment import ServingSetup
from bench.comparison.strategies.strategies import ModelSize
from bench.comparison.workload import workload
from bench.comparison.workload.workload import WorkloadRequest
from bench.support.shapes import SHAPES
from control_plane.errors import ConfigError, FaaSMoEError
from control_plane.partition.granularity import Granularity
from control_plane.partition.manifest import Manifest
from control_plane.partition.partitioner import partition

MODELS = Path("build") / "bench-models"
"""Checkpoints of random weights, relative to the current directory. Later runs use them again."""
WORKLOAD_FILE = "workload.jsonl"
MIN_CACHE_TOKENS, MAX_CACHE_TOKENS = 1024, 8192
"""Bounds for each tenant's share of the KV cache."""


def begin(settings: RunSettings, folder: Path, listener: ProgressListener) -> None:
    """Measure all strategies, and record the results in a new folder. Raises `FaaSMoEError`."""
    tasks = settings.tasks_to_measure()
    requests = settings.requests()
    Recording.refuse_results(folder)
    with tempfile.TemporaryDirectory(prefix="faasmoe-bench-", dir=_parent(folder)) as work:
        tenants = settings.tenant_names(requests)
        setup = _serving_setup(settings, tenants, requests, Path(work), listener)
        recording = Recording.begin(folder, _description(settings, requests, setup))
        workload.write(folder / WORKLOAD_FILE, requests)
        _measure(settings, tasks, requests, setup, recording, listener)


def resume(folder: Path, listener: ProgressListener) -> None:
    """Measure the missing strategies of a run, with its recorded settings. Raises `FaaSMoEError`."""
    recording = Recording.load(folder)
    settings = RunSettings(**recording.run.settings)
    requests = workload.read(folder / WORKLOAD_FILE)
    with tempfile.TemporaryDirectory(prefix="faasmoe-bench-", dir=_parent(folder)) as work:
        setup = _serving_setup(settings, recording.run.tenants, requests, Path(work), listener)
        _measure(settings, settings.tasks_to_measure(), requests, setup, recording, listener)


def random_checkpoint(shape: str, listener: ProgressListener) -> Path:
    """Folder of a checkpoint of random weights, which is written unless an earlier run has left it.

    Raises `ConfigError` for an unknown shape, `FaaSMoEError` if the checkpoint cannot be written.
    """
    if shape not in SHAPES:
        raise ConfigError(f"no shape {shape!r}; there are {', '.join(SHAPES)}")
    folder = MODELS / shape
    if folder.exists():
        return folder
    listener.line(f"writing {folder}")
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    # In its own process, so that this one does not hold torch in memory while strategies are measured.
    command = [sys.executable, "-m", "bench.support.checkpoint", "--shape", shape, "--out", str(partial)]
    finished = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if finished.returncode:
        reason = (finished.stderr.strip() or "no reason given").splitlines()[-1]
        raise FaaSMoEError(f"cannot make a model: {reason.removeprefix('Error: ')}")
    partial.replace(folder)
    return folder


def _measure(
    settings: RunSettings,
    tasks: Sequence[Task],
    requests: Sequence[WorkloadRequest],
    setup: ServingSetup,
    recording: Recording,
    listener: ProgressListener,
) -> None:
    vocab_size = json.loads((setup.checkpoint / "config.json").read_text())["vocab_size"]
    # The tokenizer of a random model makes each byte a token, so prompts would become far too long.
    tokens = (
        PromptTokens.of_model(setup.checkpoint, vocab_size) if settings.model else PromptTokens(vocab_size)
    )
    comparison = Comparison(setup, requests, tokens, settings.seed)
    asyncio.run(comparison.run(tasks, recording, listener))


def _serving_setup(
    settings: RunSettings,
    tenants: Sequence[str],
    requests: Sequence[WorkloadRequest],
    work: Path,
    listener: ProgressListener,
) -> ServingSetup:
    model = Path(settings.model) if settings.model else random_checkpoint(settings.shape, listener)
    listener.line(f"partitioning {model}")
    manifest = partition(model, work / "default")
    whole_model = Granularity(manifest.num_experts, len(manifest.moe_layers))
    partition(model, work / "one-function", granularity=whole_model)
    return ServingSetup(
        checkpoint=model,
        partition=work / "default",
        one_function=work / "one-function",
        tenants=tenants,
        threads=settings.threads,
        cache_tokens=_cache_tokens(requests),
        cache_bytes_per_token=_cache_bytes_per_token(model),
        idle_timeout=settings.idle_timeout,
        llama_server=settings.llama_server,
    )


def _cache_tokens(requests: Sequence[WorkloadRequest]) -> int:
    """Tokens of the largest round of a tenant, within the bounds."""
    tokens: Counter[tuple[str, int]] = Counter()
    for request in requests:
        prompt = request.prompt_tokens or len(request.prompt or "")
        tokens[request.tenant, request.round] += prompt + request.output_tokens
    return min(max(MIN_CACHE_TOKENS, *tokens.values()), MAX_CACHE_TOKENS)


def _cache_bytes_per_token(model: Path) -> int:
    """Bytes of a token's keys and values in all layers, in 16 bits."""
    config: dict[str, Any] = json.loads((model / "config.json").read_text())
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    key_heads = config.get("num_key_value_heads") or heads
    return int(2 * 2 * config["num_hidden_layers"] * key_heads * head_dim)


def _description(
    settings: RunSettings, requests: Sequence[WorkloadRequest], setup: ServingSetup
) -> RunDescription:
    manifest = Manifest.load(setup.partition)
    size = ModelSize.of(manifest)
    return RunDescription(
        workload=settings.workload_description(),
        model=settings.model or f"random weights, {settings.shape}",
        num_requests=len(requests),
        tenants=setup.tenants,
        settings=asdict(settings),
        dense_bytes=size.dense_bytes,
        experts_bytes=size.experts_bytes,
        num_experts=manifest.num_experts,
        moe_layers=len(manifest.moe_layers),
        machine=environment.machine(),
        versions=environment.versions(),
        began=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _parent(folder: Path) -> Path:
    """The folder above, made if necessary; it has room for partitions. Raises `ConfigError`."""
    try:
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write to {folder.parent}: {error.strerror}") from error
    return folder.absolute().parent
