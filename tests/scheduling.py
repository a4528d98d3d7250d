"""A scheduler over a cache without a model, driven as the engine drives it."""

import torch

from control_plane.engine.kv_cache import KVCache, KVCacheShape
from control_plane.engine.scheduler import Chunk, Scheduler
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
