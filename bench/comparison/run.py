"""One run of `faasmoe bench run`: its settings, what they amount to, and where its results are."""

import asyncio
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from bench.comparison.comparison import Comparison, ProgressListener, Task
from bench.comparison.recording import Recording, RunDescription
from bench.comparison.replay import PromptTokens
from bench.comparison.strategies import ServingSetup, Sizes, read_strategies
from bench.comparison.workload import generators as workloads
from bench.comparison.workload import workload
from bench.comparison.workload.workload import WorkloadRequest
from control_plane.errors import ConfigError, FaaSMoEError
from control_plane.partition.granularity import Granularity
from control_plane.partition.manifest import Manifest
from control_plane.partition.partitioner import partition

ROOT = Path(__file__).parents[2]
MODELS = Path("build") / "bench-models"
"""Checkpoints of random weights, which are made once."""
WORKLOAD_FILE = "workload.jsonl"
LEAST_CACHE_TOKENS, MOST_CACHE_TOKENS = 1024, 8192
"""Of a tenant."""


@dataclass(frozen=True)
class RunSettings:
    """What the command is told."""

    strategies: Sequence[str]
    shape: str
    model: str | None
    """A folder with a checkpoint, in the place of random weights of that shape."""
    tenants: int
    workload: str
    """One of `workloads.KINDS`, or a file."""
    tasks: str | None
    """A folder with BIG-Bench-Hard's."""
    rounds: int
    duration: float
    """Seconds, and `rate` requests a second, of a workload without rounds."""
    rate: float
    output_tokens: int
    experts_per_function: Sequence[int]
    threads: int
    idle_timeout: float
    memory_budget: int | None
    llama_server: str | None
    """llama.cpp's program; None where it is not installed."""
    seed: int

    def requests(self) -> list[WorkloadRequest]:
        """The workload. Raises `ConfigError`."""
        if self.workload in workloads.KINDS:
            return workloads.make(
                self.workload,
                workloads.tenants(self.tenants),
                rate=self.rate,
                duration=self.duration,
                tasks=Path(self.tasks) if self.tasks else None,
                rounds=self.rounds,
                output_tokens=self.output_tokens,
                seed=self.seed,
            )
        if not Path(self.workload).is_file():
            raise ConfigError(f"no workload {self.workload!r}: it is {', '.join(workloads.KINDS)}, or a file")
        return workload.read(Path(self.workload))

    def names(self, requests: Sequence[WorkloadRequest]) -> list[str]:
        """Of all tenants, those among them that happen to ask for nothing; of a file's, all that it has."""
        if self.workload in workloads.KINDS:
            return workloads.tenants(self.tenants)
        return sorted({request.tenant for request in requests})

    def describe(self) -> str:
        """The workload, in words."""
        open_loop = f"{self.rate:g} requests/s for {self.duration:g} s"
        questions = "BIG-Bench-Hard's questions" if self.tasks else "prompts as long as BIG-Bench-Hard's"
        return {
            "poisson": f"Poisson arrivals, {open_loop}",
            "bursty": f"bursts of each tenant, {open_loop} on average",
            "bbh": f"{self.rounds} rounds of {questions}, {workloads.TASKS_PER_TENANT} a tenant at once",
        }.get(self.workload, f"the workload of {Path(self.workload).name}")

    def tasks_to_measure(self) -> list[Task]:
        """Each strategy, then FaaSMoE-Shared within the budget, and with functions of each size.

        Raises `ConfigError`.
        """
        (shared,) = read_strategies(["faasmoe-shared"])
        return [
            *(Task(strategy) for strategy in read_strategies(self.strategies, self.llama_server)),
            *([Task(shared, memory_budget=self.memory_budget)] if self.memory_budget else []),
            *(Task(shared, size) for size in self.experts_per_function),
        ]


def begin(settings: RunSettings, folder: Path, listener: ProgressListener) -> None:
    """Measure, into a new folder. Raises `FaaSMoEError`."""
    tasks = settings.tasks_to_measure()
    requests = settings.requests()
    Recording.refuse_results(folder)
    with tempfile.TemporaryDirectory(prefix="faasmoe-bench-", dir=_parent(folder)) as work:
        service = _service(settings, settings.names(requests), requests, Path(work), listener)
        recording = Recording.begin(folder, _run(settings, requests, service))
        workload.write(folder / WORKLOAD_FILE, requests)
        _measure(settings, tasks, requests, service, recording, listener)


def resume(folder: Path, listener: ProgressListener) -> None:
    """Measure what a run has left, as it was begun. Raises `FaaSMoEError`."""
    recording = Recording.load(folder)
    settings = RunSettings(**recording.run.settings)
    requests = workload.read(folder / WORKLOAD_FILE)
    with tempfile.TemporaryDirectory(prefix="faasmoe-bench-", dir=_parent(folder)) as work:
        service = _service(settings, recording.run.tenants, requests, Path(work), listener)
        _measure(settings, settings.tasks_to_measure(), requests, service, recording, listener)


def random_checkpoint(shape: str, listener: ProgressListener) -> Path:
    """With a published model's dimensions, or a fraction of them. Raises `FaaSMoEError`."""
    folder = MODELS / shape
    if folder.exists():
        return folder
    listener.line(f"writing {folder}")
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "bench.support.checkpoint",
        "--shape",
        shape,
        "--out",
        str(partial),
    ]
    made = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if made.returncode:
        raise FaaSMoEError(
            f"cannot make a model: {(made.stderr.strip() or 'no reason given').splitlines()[-1]}"
        )
    partial.replace(folder)
    return folder


def _measure(
    settings: RunSettings,
    tasks: Sequence[Task],
    requests: Sequence[WorkloadRequest],
    service: ServingSetup,
    recording: Recording,
    listener: ProgressListener,
) -> None:
    vocab_size = json.loads((service.checkpoint / "config.json").read_text())["vocab_size"]
    # That of random weights takes each byte for a token, which would make prompts far too long.
    tokens = (
        PromptTokens.of_model(service.checkpoint, vocab_size) if settings.model else PromptTokens(vocab_size)
    )
    comparison = Comparison(service, requests, tokens, settings.seed)
    asyncio.run(comparison.run(tasks, recording, listener))


def _service(
    settings: RunSettings,
    tenants: Sequence[str],
    requests: Sequence[WorkloadRequest],
    work: Path,
    listener: ProgressListener,
) -> ServingSetup:
    model = Path(settings.model) if settings.model else random_checkpoint(settings.shape, listener)
    listener.line(f"partitioning {model}")
    usual = partition(model, work / "usual")
    whole = Granularity(usual.num_experts, len(usual.moe_layers))
    partition(model, work / "one", granularity=whole)
    return ServingSetup(
        checkpoint=model,
        partition=work / "usual",
        one_function=work / "one",
        tenants=tenants,
        threads=settings.threads,
        cache_tokens=_cache_tokens(requests),
        cache_bytes_per_token=_cache_bytes_per_token(model),
        idle_timeout=settings.idle_timeout,
        llama_server=settings.llama_server,
    )


def _cache_tokens(requests: Sequence[WorkloadRequest]) -> int:
    """What a tenant's requests of a round have together, where that is not too much."""
    most: Counter[tuple[str, int]] = Counter()
    for request in requests:
        prompt = request.prompt_tokens or len(request.prompt or "")
        most[request.tenant, request.round] += prompt + request.output_tokens
    return min(max(LEAST_CACHE_TOKENS, *most.values()), MOST_CACHE_TOKENS)


def _cache_bytes_per_token(model: Path) -> int:
    """Of keys and values in all layers, in 16 bits."""
    config: dict[str, Any] = json.loads((model / "config.json").read_text())
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    key_heads = config.get("num_key_value_heads") or heads
    return int(2 * 2 * config["num_hidden_layers"] * key_heads * head_dim)


def _run(settings: RunSettings, requests: Sequence[WorkloadRequest], service: ServingSetup) -> RunDescription:
    manifest = Manifest.load(service.partition)
    sizes = Sizes.of(manifest)
    return RunDescription(
        workload=settings.describe(),
        model=settings.model or f"random weights, {settings.shape}",
        num_requests=len(requests),
        tenants=service.tenants,
        settings=asdict(settings),
        dense_bytes=sizes.dense,
        experts_bytes=sizes.experts,
        num_experts=manifest.num_experts,
        moe_layers=len(manifest.moe_layers),
        machine={
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "memory": f"{psutil.virtual_memory().total / 1e9:.1f} GB",
            "system": platform.platform(terse=True),
        },
        versions={
            "commit": _commit(),
            "python": platform.python_version(),
            **{name: version(name) for name in ("faasmoe", "torch", "transformers")},
        },
        began=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _commit() -> str:
    """Of the checkout; "unknown" where there is none."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return described.stdout.strip() or "unknown"


def _parent(folder: Path) -> Path:
    """Where there is room for what the run needs; made if need be. Raises `ConfigError`."""
    try:
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write to {folder.parent}: {error.strerror}") from error
    return folder.absolute().parent
