"""Measures strategies one after the other under the same workload."""

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import psutil

from bench.comparison import greedy
from bench.comparison.greedy import GreedyAnswer
from bench.comparison.measuring.recording import FunctionCalls, Recording, StrategyResult
from bench.comparison.measuring.replay import PromptTokens, RequestOutcome, replay
from bench.comparison.measuring.resources import Moment, metered
from bench.comparison.progress import ProgressListener
from bench.comparison.strategies.deployment import Deployment, ServingSetup, weight_files
from bench.comparison.strategies.strategies import ModelSize, Strategy
from bench.comparison.workload.workload import WorkloadRequest
from bench.support import requests
from bench.support.page_cache import cached_bytes, forget
from bench.support.requests import FAILURES, reasons
from bench.support.scrape import Scrape
from control_plane.errors import FaaSMoEError
from control_plane.partition.granularity import Granularity
from control_plane.partition.manifest import Manifest
from control_plane.partition.partitioner import partition

CHECK_PROMPT_TOKENS, CHECK_TOKENS = 24, 8
"""Length of the answer that is checked for each tenant before the workload begins."""
SETTLE_SECONDS = 3.0
"""Wait after the idle timeout, before idle resources are sampled."""
IDLE_SECONDS = 5.0
"""How long idle resources are sampled."""


@dataclass(frozen=True)
class Task:
    """A strategy to measure, and how it differs from the default."""

    strategy: Strategy
    experts_per_function: int | None = None
    """Experts of one layer in each function."""
    memory_budget: int | None = None
    """Memory budget of FaaSMoE in bytes; None is no budget."""
    dtype: str | None = None
    """Type of FaaSMoE's weights, those of the dense part too; None is the checkpoint's own."""

    @property
    def title(self) -> str:
        """The name for progress and report."""
        size, budget = self.experts_per_function, self.memory_budget
        return (
            self.strategy.title
            + (f", {size} experts a function" if size else "")
            + (f", within {budget / 1e9:g} GB" if budget else "")
            + (f", {self.dtype}" if self.dtype else "")
        )

    def partition(self, model: Path, target: Path) -> None:
        """Partition the checkpoint, as this task differs from the default."""
        size, dtype = self.experts_per_function, self.dtype or "auto"
        granularity = Granularity(size, 1) if size else None
        partition(model, target, granularity=granularity, dtype=dtype, dense_dtype=dtype)


@dataclass(frozen=True)
class Comparison:
    """The setup and the workload that all strategies have in common."""

    setup: ServingSetup
    """The setup of a strategy; its `partition` has the default granularity."""
    workload: Sequence[WorkloadRequest]
    tokens: PromptTokens
    seed: int

    async def run(self, tasks: Sequence[Task], recording: Recording, listener: ProgressListener) -> None:
        """Measure the tasks that the recording has no result of. A failure is recorded as a result."""
        for task in tasks:
            blank = StrategyResult(
                task.strategy.name, task.title, task.experts_per_function, task.memory_budget, task.dtype
            )
            if (earlier := recording.results.get(blank.key)) and not earlier.problem:
                listener.line(f"{task.title}: measured already")
                continue
            listener.begin(task.title, len(self.workload))
            try:
                result = await self._measure(task, blank, listener)
            except* FAILURES as failed:
                result = replace(blank, problem=reasons(failed))
            listener.end(result.problem)
            recording.add(result)

    async def _measure(self, task: Task, blank: StrategyResult, listener: ProgressListener) -> StrategyResult:
        with tempfile.TemporaryDirectory(prefix="faasmoe-", dir=self.setup.partition.parent) as folder:
            setup = replace(self.setup, memory_budget=task.memory_budget)
            if task.experts_per_function or task.dtype:
                target = Path(folder) / "partition"
                await asyncio.to_thread(task.partition, setup.checkpoint, target)
                setup = replace(setup, partition=target)
            size = ModelSize.of(Manifest.load(setup.partition))
            needs = task.strategy.needs(size, len(setup.tenants))
            blank = replace(blank, needs_bytes=needs, functions=size.functions)
            if needs > (free := psutil.virtual_memory().available):
                problem = f"does not fit: it needs {needs / 1e9:.1f} GB, and {free / 1e9:.1f} are free"
                return replace(blank, problem=problem)
            # Each strategy starts with weights on disk only, whichever was measured before it.
            folders = setup.checkpoint, setup.partition, setup.one_function
            await asyncio.to_thread(forget, [file for folder in folders for file in weight_files(folder)])
            clock = asyncio.get_running_loop().time
            started = clock()
            async with task.strategy.serve(setup) as deployment, requests.session() as client:
                ready = replace(blank, ready_seconds=clock() - started)
                return await self._replay(client, setup, deployment, ready, listener)

    async def _replay(
        self,
        client: aiohttp.ClientSession,
        setup: ServingSetup,
        deployment: Deployment,
        blank: StrategyResult,
        listener: ProgressListener,
    ) -> StrategyResult:
        """Check the answers, replay the workload, and then let the deployment go idle."""
        accepted = greedy.MAX_SHORTFALL_INT4 if blank.dtype == "int4" else greedy.MAX_SHORTFALL
        shortfall = await self._check(client, setup, deployment, accepted)
        before = await _calls(client, deployment)
        with metered(deployment.roots) as moments:
            outcomes = await replay(
                client, deployment.endpoints, self.workload, self.tokens, self.seed, listener.request
            )
        after = await _calls(client, deployment)
        cached = await asyncio.to_thread(cached_bytes, deployment.files)
        _refuse_failure(deployment, outcomes)
        return replace(
            blank,
            shortfall=shortfall,
            outcomes=outcomes,
            moments=moments,
            idle=await _idle(deployment, setup.idle_timeout),
            calls=_difference(before, after) if before and after else None,
            cached_bytes=cached,
        )

    async def _check(
        self, client: aiohttp.ClientSession, setup: ServingSetup, deployment: Deployment, accepted: float
    ) -> float:
        """The shortfall of one answer for each tenant, see greedy.py.

        Raises `FaaSMoEError` if it is larger than accepted.
        """
        answers = []
        for number, (tenant, endpoint) in enumerate(deployment.endpoints.items()):
            prompt = requests.random_prompt(CHECK_PROMPT_TOKENS, number, self.tokens.vocab_size)
            timing = await requests.stream(
                client,
                endpoint.url,
                endpoint.key,
                prompt,
                CHECK_TOKENS,
                user=tenant,
                token_id_fields=endpoint.token_id_fields,
            )
            answers.append(GreedyAnswer(prompt, timing.token_ids))
        shortfall = await greedy.shortfall(setup.checkpoint, answers, setup.threads)
        # Written so that a shortfall that is not a number fails, too.
        if not shortfall <= accepted:
            raise FaaSMoEError(
                f"answers wrongly: a token is {shortfall:.2f} standard deviations less likely than the "
                f"model's own, more than the {accepted} that rounding may make"
            )
        return shortfall


async def _idle(deployment: Deployment, idle_timeout: float) -> Sequence[Moment]:
    """Resources that are used after the idle timeout, without any requests."""
    await asyncio.sleep(idle_timeout + SETTLE_SECONDS)
    with metered(deployment.roots) as moments:
        await asyncio.sleep(IDLE_SECONDS)
    return moments


async def _calls(client: aiohttp.ClientSession, deployment: Deployment) -> FunctionCalls | None:
    """All function calls that the control planes have counted so far; None without control planes."""
    if not deployment.control_planes:
        return None
    scrapes = [await Scrape.now(client, url) for url in deployment.control_planes]
    return FunctionCalls(
        **{name: sum(scrape.total(metric) for scrape in scrapes) for name, metric in _METRICS.items()}
    )


_METRICS = {
    "invocations": "faasmoe:function_invocations_total",
    "rows": "faasmoe:function_rows_total",
    "seconds": "faasmoe:function_seconds_total",
    "sent_bytes": "faasmoe:function_sent_bytes_total",
    "received_bytes": "faasmoe:function_received_bytes_total",
    "cold_experts": "faasmoe:function_cold_experts_total",
}
"""The metric of each field of `FunctionCalls`."""


def _difference(before: FunctionCalls, after: FunctionCalls) -> FunctionCalls:
    return FunctionCalls(**{name: getattr(after, name) - getattr(before, name) for name in _METRICS})


def _refuse_failure(deployment: Deployment, outcomes: Sequence[RequestOutcome]) -> None:
    """Raises `FaaSMoEError` if a process has ended, or no request was answered."""
    if ended := [root.role for root in deployment.roots if not _runs(root.pid)]:
        raise FaaSMoEError(f"a process has ended while it was measured: {ended[0]}")
    if all(outcome.error for outcome in outcomes):
        raise FaaSMoEError(f"no request was answered: {outcomes[0].error}")


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
