"""A scheduler with a KV cache but without a model, driven in the same way as the engine drives it."""

from collections import Counter, defaultdict

import numpy as np

from control_plane.engine.kernels import load_dense_kernel
from control_plane.engine.scheduling.chunk import Chunk
from control_plane.engine.scheduling.fairness import OUTPUT_COST, PROMPT_COST
from control_plane.engine.scheduling.policy import FairAcrossTenants, FirstComeFirstServed
from control_plane.engine.scheduling.scheduler import Scheduler
from control_plane.engine.state.hybrid_cache import HybridCache
from control_plane.engine.state.kv_cache import KVCache
from control_plane.engine.state.kv_cache_shape import KVCacheShape
from control_plane.engine.state.lane_states import StateShape
from control_plane.engine.state.sequence import SamplingParams, Sequence

PAGE = 16
"""Tokens per page of the KV cache."""
SHAPE = KVCacheShape.uniform(1, 1, 64, np.dtype(np.float32))
STATES = (StateShape((1,), np.dtype(np.float32)),)


class WithStates(HybridCache):
    """Memory with a state of one number, which takes no page unless it is kept."""

    pages_per_sequence = 0


def make_scheduler(
    max_batch_tokens: int = 8,
    max_sequences: int = 8,
    num_pages: int = 100,
    num_lanes: int = 16,
    *,
    fair: bool = True,
    keeps_prefixes: bool = True,
    chunks_prompts: bool = True,
    prefix_cache: bool = False,
) -> Scheduler:
    """A scheduler without sequences; fair across tenants, or first come, first served."""
    size = SHAPE, num_pages, num_lanes, num_pages * PAGE, load_dense_kernel(), 1
    cache = KVCache(*size) if keeps_prefixes else WithStates(*size, STATES)
    policy = FairAcrossTenants() if fair else FirstComeFirstServed()
    return Scheduler(cache, max_batch_tokens, max_sequences, policy, chunks_prompts, prefix_cache)


def make_sequence(
    prompt: int, output: int = 1, tenant: str = "tenant", weight: float = 1.0, name: str = ""
) -> Sequence:
    """A sequence with these numbers of prompt and output tokens."""
    return Sequence(name, tenant, [0] * prompt, SamplingParams(output), weight)


def advance(scheduler: Scheduler) -> list[Chunk]:
    """Plan a step and complete it; returns its chunks."""
    batch = scheduler.schedule()
    complete(scheduler, batch)
    return batch


def complete(scheduler: Scheduler, batch: list[Chunk]) -> None:
    """Commit a step, append a token where the next one is known, and remove sequences that have ended."""
    cache = scheduler.kv_cache
    if isinstance(cache, HybridCache):
        for chunk in batch:
            lane = cache.pages.lane(chunk.sequence)
            cache.states.source(lane, chunk.start)
            cache.states.commit(lane, chunk.end)
    scheduler.commit(batch)
    for sequence in [chunk.sequence for chunk in batch if chunk.is_last]:
        sequence.append(0, frozenset())
        if sequence.finish_reason:
            scheduler.remove(sequence)


def evict_all(scheduler: Scheduler) -> None:
    """Evict all prefixes."""
    prefixes = scheduler.prefixes
    pages = scheduler.kv_cache.pages
    for prefix in prefixes.to_evict(pages.held, pages.num_pages, {}, (), None):
        prefixes.evict(prefix)


def assert_empty(scheduler: Scheduler) -> None:
    """Fail if the scheduler or its cache still holds anything of a sequence."""
    pages = scheduler.kv_cache.pages
    assert (scheduler.num_running, scheduler.num_waiting) == (0, 0)
    assert (pages.num_free_pages, pages.num_free_lanes) == (pages.num_pages, pages.num_lanes)
    assert not scheduler.schedule()


class Simulation:
    """Runs a scheduler and counts each tenant's service: a token counts once, even if computed twice."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.service: defaultdict[str, float] = defaultdict(float)
        self._seen: Counter[Sequence] = Counter()
        self._unseen: Counter[str] = Counter()

    def add(self, number: int, tenant: str, prompt: int, output: int, weight: float = 1.0) -> list[Sequence]:
        sequences = [make_sequence(prompt, output, tenant, weight) for _ in range(number)]
        for sequence in sequences:
            self.scheduler.add(sequence)
        self._unseen[tenant] += number
        return sequences

    def step(self) -> list[Chunk]:
        batch = advance(self.scheduler)
        for chunk in batch:
            sequence = chunk.sequence
            seen = self._seen[sequence]
            self._unseen[sequence.tenant] -= seen == 0
            for position in range(max(chunk.start, seen), chunk.end):
                is_prompt = position < sequence.num_prompt_tokens
                self.service[sequence.tenant] += PROMPT_COST if is_prompt else OUTPUT_COST
            self._seen[sequence] = max(chunk.end, seen)
        return batch

    def backlogged(self, tenant: str) -> bool:
        """Whether the tenant has a sequence that has had no service yet."""
        return self._unseen[tenant] > 0

    def run(self, backlogged: str) -> list[tuple[float, float]]:
        """Run until the tenant is no longer backlogged.

        Returns the service of "flood" and of "steady" after each step.
        """
        had = []
        while self.backlogged(backlogged):
            self.step()
            had.append((self.service["flood"], self.service["steady"]))
        return had
