"""A scheduler over a cache without a model, driven as the engine drives it."""

from collections import Counter, defaultdict

import torch

from control_plane.engine.model.kv_cache import KVCache, KVCacheShape
from control_plane.engine.scheduling.fairness import OUTPUT_COST, PROMPT_COST
from control_plane.engine.scheduling.scheduler import Chunk, Scheduler
from control_plane.engine.sequence import SamplingParams, Sequence

PAGE = 16
"""Tokens in a page."""
SHAPE = KVCacheShape(num_layers=1, num_kv_heads=1, head_dim=64, dtype=torch.float32)


def make_scheduler(
    max_batch_tokens: int = 8,
    max_sequences: int = 8,
    num_pages: int = 100,
    num_lanes: int = 16,
    *,
    fair: bool = True,
) -> Scheduler:
    """One that has nothing to do."""
    cache = KVCache(SHAPE, num_pages, num_lanes, max_length=num_pages * PAGE)
    return Scheduler(cache, max_batch_tokens, max_sequences, fair)


def make_sequence(
    prompt: int, output: int = 1, tenant: str = "tenant", weight: float = 1.0, name: str = ""
) -> Sequence:
    """A sequence of so many prompt and output tokens."""
    return Sequence(name, tenant, [0] * prompt, SamplingParams(output), weight)


def advance(scheduler: Scheduler) -> list[Chunk]:
    """One step as the engine takes it: the tokens are computed, what has ended is removed."""
    batch = scheduler.schedule()
    complete(scheduler, batch)
    return batch


def complete(scheduler: Scheduler, batch: list[Chunk]) -> None:
    """The second half of `advance`."""
    scheduler.commit(batch)
    for sequence in [chunk.sequence for chunk in batch if chunk.is_last]:
        sequence.append(0, frozenset())
        if sequence.finish_reason:
            scheduler.remove(sequence)


def assert_empty(scheduler: Scheduler) -> None:
    """Nothing of any sequence is left."""
    pages = scheduler.kv_cache.pages
    assert (scheduler.num_running, scheduler.num_waiting) == (0, 0)
    assert (pages.num_free_pages, pages.num_free_lanes) == (pages.num_pages, pages.num_lanes)
    assert not scheduler.schedule()


class Simulation:
    """Steps of a scheduler, and what the tenants have had: each token counts once, however often computed."""

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
        """Whether something of the tenant's has had nothing yet."""
        return self._unseen[tenant] > 0

    def run(self, backlogged: str) -> list[tuple[float, float]]:
        """What the flooding and the steady tenant have had, after each step that leaves `backlogged` so."""
        had = []
        while self.backlogged(backlogged):
            self.step()
            had.append((self.service["flood"], self.service["steady"]))
        return had
