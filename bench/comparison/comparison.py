"""Runs strategies one after the other, each over the same workload, and keeps what it finds of each."""

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import psutil

from bench.comparison import greedy
from bench.comparison.greedy import GreedyAnswer
from bench.comparison.recording import Calls, Recording, StrategyResult
from bench.comparison.replay import PromptTokens, RequestOutcome, replay
from bench.comparison.resources import Moment, metered
from bench.comparison.strategies import Deployment, ServingSetup, Sizes, Strategy, weights
from bench.comparison.workload.workload import WorkloadRequest
from bench.support import requests
from bench.support.failures import FAILURES, reasons
from bench.support.page_cache import cached_bytes, forget
from bench.support.scrape import Scrape
from control_plane.errors import FaaSMoEError
from control_plane.partition.granularity import Granularity
from control_plane.partition.manifest import Manifest
from control_plane.partition.partitioner import partition

CHECK_PROMPT_TOKENS, CHECK_TOKENS = 24, 8
"""Of the answer that each tenant is given before the workload begins."""
SETTLE_SECONDS = 3.0
"""After the idle timeout."""
IDLE_SECONDS = 5.0
"""For how long idleness is sampled."""


@dataclass(frozen=True)
class Task:
    """A strategy, and in what it differs from the usual."""

    strategy: Strategy
    experts_per_function: int | None = None
    """Of one layer."""
    memory_budget: int | None = None
    """Bytes."""

    @property
    def title(self) -> str:
        """As progress and report name it."""
        size, budget = self.experts_per_function, self.memory_budget
        return (
            self.strategy.title
            + (f", {size} experts a function" if size else "")
            + (f", within {budget / 1e9:g} GB" if budget else "")
        )


class ProgressListener:
    """What a person sees of the progress: nothing."""

    def line(self, text: str) -> None:
        """Something to be said."""

    def begin(self, title: str, requests: int) -> None:
        """A strategy starts, which will answer so many requests."""

    def request(self, outcome: RequestOutcome) -> None:
        """One of them has ended."""

    def end(self, problem: str) -> None:
        """The strategy has been measured, or has not."""


@dataclass(frozen=True)
class Comparison:
    """What all strategies have in common."""

    service: ServingSetup
    """Its `partition` has the granularity that is usual."""
    workload: Sequence[WorkloadRequest]
    tokens: PromptTokens
    seed: int

    async def run(self, tasks: Sequence[Task], recording: Recording, listener: ProgressListener) -> None:
        """Measure what the recording does not have yet. What goes wrong with one is told there."""
        for task in tasks:
            blank = StrategyResult(
                task.strategy.name, task.title, task.experts_per_function, task.memory_budget
            )
            if (earlier := recording.measured.get(blank.key)) and not earlier.problem:
                listener.line(f"{task.title}: measured already")
                continue
            listener.begin(task.title, len(self.workload))
            try:
                measured = await self._measure(task, blank, listener)
            except* FAILURES as failed:
                measured = replace(blank, problem=reasons(failed))
            listener.end(measured.problem)
            recording.add(measured)

    async def _measure(self, task: Task, blank: StrategyResult, listener: ProgressListener) -> StrategyResult:
        with tempfile.TemporaryDirectory(prefix="faasmoe-", dir=self.service.partition.parent) as folder:
            service = replace(self.service, memory_budget=task.memory_budget)
            if task.experts_per_function:
                granularity = Granularity(task.experts_per_function, 1)
                target = Path(folder) / "partition"
                await asyncio.to_thread(partition, service.checkpoint, target, granularity=granularity)
                service = replace(service, partition=target)
            sizes = Sizes.of(Manifest.load(service.partition))
            needs = task.strategy.needs(sizes, len(service.tenants))
            blank = replace(blank, needs_bytes=needs, functions=sizes.functions)
            if needs > (free := psutil.virtual_memory().available):
                problem = f"does not fit: it needs {needs / 1e9:.1f} GB, and {free / 1e9:.1f} are free"
                return replace(blank, problem=problem)
            folders = service.checkpoint, service.partition, service.one_function
            await asyncio.to_thread(forget, [file for folder in folders for file in weights(folder)])
            clock = asyncio.get_running_loop().time
            started = clock()
            async with task.strategy.serve(service) as deployment, requests.session() as client:
                ready = replace(blank, ready_seconds=clock() - started)
                return await self._replayed(client, service, deployment, ready, listener)

    async def _replayed(
        self,
        client: aiohttp.ClientSession,
        service: ServingSetup,
        deployment: Deployment,
        blank: StrategyResult,
        listener: ProgressListener,
    ) -> StrategyResult:
        checked = await self._check(client, service, deployment)
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
            shortfall=checked,
            outcomes=outcomes,
            moments=moments,
            idle=await _idle(deployment, service.idle_timeout),
            calls=_between(before, after) if before and after else None,
            cached_bytes=cached,
        )

    async def _check(
        self, client: aiohttp.ClientSession, service: ServingSetup, deployment: Deployment
    ) -> float:
        """By how much answers fall short of the unsplit model's. Raises `FaaSMoEError` when by too much."""
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
                tell_tokens=endpoint.tell_tokens,
            )
            answers.append(GreedyAnswer(prompt, timing.token_ids))
        most = await greedy.shortfall(service.checkpoint, answers, service.threads)
        if not most <= greedy.MOST_SHORTFALL:
            raise FaaSMoEError(
                f"answers wrongly: a token is {most:.2f} standard deviations less likely than the model's "
                f"own, more than the {greedy.MOST_SHORTFALL} that rounding may make"
            )
        return most


async def _idle(deployment: Deployment, idle_timeout: float) -> Sequence[Moment]:
    """What is used once nobody has asked for anything for longer than the timeout."""
    await asyncio.sleep(idle_timeout + SETTLE_SECONDS)
    with metered(deployment.roots) as moments:
        await asyncio.sleep(IDLE_SECONDS)
    return moments


async def _calls(client: aiohttp.ClientSession, deployment: Deployment) -> Calls | None:
    """All that the control planes have counted so far; None where there are none."""
    if not deployment.control_planes:
        return None
    scrapes = [await Scrape.now(client, url) for url in deployment.control_planes]
    return Calls(
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


def _between(before: Calls, after: Calls) -> Calls:
    return Calls(**{name: getattr(after, name) - getattr(before, name) for name in _METRICS})


def _refuse_failure(deployment: Deployment, outcomes: Sequence[RequestOutcome]) -> None:
    """Raises `FaaSMoEError` when a process has ended, or nobody was answered."""
    if gone := [root.role for root in deployment.roots if not _runs(root.pid)]:
        raise FaaSMoEError(f"a process has ended while it was measured: {gone[0]}")
    if all(outcome.error for outcome in outcomes):
        raise FaaSMoEError(f"no request was answered: {outcomes[0].error}")


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
