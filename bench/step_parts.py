"""Where the time of a step goes: `make bench-step`.

The engine runs in this process, its functions behind a gateway of its own, without a limit of memory. Each
part is timed by itself, from outside, while sequences generate; beside it is what the memory's bandwidth
allows for the weights that are read.
"""

import asyncio
import functools
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from bench.bandwidth import memory_bandwidth
from bench.listed import Listed
from bench.weights import StepWeights
from control_plane.cli.signals import sigterm_exits
from control_plane.config import ServeConfig
from control_plane.engine.attention import RaggedAttention
from control_plane.engine.dispatcher import Dispatcher
from control_plane.engine.engine import Engine
from control_plane.engine.kv_cache import KVCache
from control_plane.engine.model_runner import ModelRunner
from control_plane.engine.packed_linear import PackedGatedFFN, PackedLinear
from control_plane.engine.rms_norm import KernelRMSNorm
from control_plane.engine.sampler import Sampler
from control_plane.engine.sequence import SamplingParams, Sequence
from control_plane.engine.step import Step
from control_plane.errors import FaaSMoEError
from control_plane.partition.manifest import Manifest
from control_plane.profiling import running_engine
from control_plane.tables import table

PROMPT_TOKENS = 64
ANSWER_TOKENS = 128
STEP, ATTENTION = "step", "attention"
NORMS, LINEAR, CACHE = "norms", "q, k, v and o", "past of attention"
ROUTER, SEND, WAIT = "router", "send to functions", "wait for functions"
SHARED, HEAD, SAMPLE = "shared expert, while functions compute", "head", "sample"
REST_OF_ATTENTION, REST = "rest of attention", "rest"


@dataclass
class Stopwatch:
    """Adds up how long methods take, and how many steps they were for."""

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    steps: int = 0

    def time(self, owner: type, method: str, part: str) -> None:
        """Have a class's method timed from now on."""
        original = getattr(owner, method)

        @functools.wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds[part] += time.perf_counter() - started
                self.steps += part == STEP

        setattr(owner, method, timed)

    def time_waits(self) -> None:
        """The same for the dispatcher, which sends and then has the engine wait."""
        original = Dispatcher.begin

        def begin(*args: Any) -> Callable[[], Any]:
            started = time.perf_counter()
            answers = original(*args)
            self.seconds[SEND] += time.perf_counter() - started

            def wait() -> Any:
                began = time.perf_counter()
                try:
                    return answers()
                finally:
                    self.seconds[WAIT] += time.perf_counter() - began

            return wait

        setattr(Dispatcher, "begin", begin)  # noqa: B010

    def time_all(self, runner: ModelRunner) -> None:
        """All parts of a step of this model."""
        router = runner.model.model.layers[-1].mlp.gate
        self.time(Step, "run", STEP)
        self.time(RaggedAttention, "forward", ATTENTION)
        self.time(KVCache, "attend", CACHE)
        self.time(RaggedAttention, "project", LINEAR)
        self.time(PackedLinear, "forward", LINEAR)
        self.time(KernelRMSNorm, "forward", NORMS)
        self.time(type(router), "forward", ROUTER)
        self.time(PackedGatedFFN, "forward", SHARED)
        self.time(ModelRunner, "next_logits", HEAD)
        self.time(Sampler, "sample", SAMPLE)
        self.time_waits()

    def since(self, before: "Stopwatch") -> dict[str, float]:
        """Seconds of a step by its parts, each without what is listed besides it."""
        steps = self.steps - before.steps
        mean = {part: (self.seconds[part] - before.seconds[part]) / steps for part in self.seconds}
        # The head is a packed layer, too.
        mean[LINEAR] -= mean[HEAD]
        whole, attention = mean.pop(STEP), mean.pop(ATTENTION)
        mean[REST_OF_ATTENTION] = attention - mean[LINEAR] - mean[CACHE]
        mean[REST] = whole - sum(mean.values())
        return mean | {STEP: whole}


async def measure(engine: Engine, watch: Stopwatch, sequences: int, vocab_size: int) -> dict[str, float]:
    """Seconds of a step by its parts, from when all have half of their tokens to when the first has all."""
    random = np.random.default_rng(sequences)
    made = [
        Sequence(
            f"{number}",
            "bench",
            random.integers(vocab_size, size=PROMPT_TOKENS).tolist(),
            SamplingParams(ANSWER_TOKENS, temperature=1.0, seed=number, ignore_eos=True),
        )
        for number in range(sequences)
    ]
    counts = [0] * sequences
    begun, ended = None, None
    async for number, _ in engine.submit(made):
        counts[number] += 1
        if begun is None and min(counts) >= ANSWER_TOKENS // 2:
            begun = replace(watch, seconds=watch.seconds.copy())
        if ended is None and max(counts) == ANSWER_TOKENS:
            ended = replace(watch, seconds=watch.seconds.copy())
    if begun is None or ended is None:
        raise FaaSMoEError("the answers did not overlap for half of their tokens")
    return ended.since(begun)


async def bench(folder: Path, counts: tuple[int, ...], weights: StepWeights) -> list[list[str]]:
    """A table of milliseconds: parts, for each number of sequences at once."""
    manifest = Manifest.load(folder)
    bandwidth = memory_bandwidth()
    config = ServeConfig(kv_cache_mb=1024, max_sequences=max(counts))
    async with running_engine(folder, manifest, config) as (runner, engine):
        vocab_size = runner.model.config.vocab_size
        watch = Stopwatch()
        watch.time_all(runner)
        # The first time, functions read their experts.
        await measure(engine, watch, max(counts), vocab_size)
        found = [await measure(engine, watch, count, vocab_size) for count in counts]
    rows = [[part, *(f"{each[part] * 1e3:.1f}" for each in found)] for part in found[0]]
    least = [f"{weights.nbytes(count) / bandwidth * 1e3:.1f}" for count in counts]
    return [*rows, [f"its weights at {bandwidth / 1e9:.1f} GB/s", *least]]


@click.command()
@click.argument("partition", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--sequences", type=Listed(int), default="1,6,32", show_default=True, help="At once.")
@click.option(
    "--profile",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Of the partition, by `faasmoe profile`, for which experts sequences share.  [default: uniform]",
)
def main(partition: Path, sequences: tuple[int, ...], profile: Path | None) -> None:
    """Print where the time of a step of the PARTITION's model goes, in milliseconds.

    Its dense part has to be in int8: `faasmoe partition --dense-dtype int8`.
    """
    try:
        with sigterm_exits():
            rows = asyncio.run(bench(partition, sequences, StepWeights.of(partition, profile)))
    except FaaSMoEError as error:
        raise click.ClickException(str(error)) from error
    for line in table(["ms a step", *map(str, sequences)], rows):
        click.echo(line)


if __name__ == "__main__":
    main()
