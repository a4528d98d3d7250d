"""What each step computes, by cases. Sequences are named by a letter; a page holds four tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.engine.kv_cache import KVCache, KVCacheShape
from control_plane.engine.scheduler import Chunk, Scheduler
from control_plane.engine.sequence import SamplingParams, Sequence

Step = list[tuple[str, int, int]]
"""The chunks of a step: name, start and length."""


def make_scheduler(max_batch_tokens: int = 8, max_sequences: int = 8, num_pages: int = 100) -> Scheduler:
    shape = KVCacheShape(num_layers=1, num_kv_heads=1, head_dim=1, dtype=torch.float32, page_size=4)
    return Scheduler(KVCache(shape, num_pages), max_batch_tokens, max_sequences)


def add(scheduler: Scheduler, *lengths: tuple[int, int]) -> list[Sequence]:
    """Queue sequences a, b, ... of so many prompt and output tokens."""
    sequences = [
        Sequence(name, "tenant", [0] * prompt, SamplingParams(output))
        for name, (prompt, output) in zip("abcdefghij", lengths, strict=False)
    ]
    for sequence in sequences:
        scheduler.add(sequence)
    return sequences


def shown(batch: list[Chunk]) -> Step:
    return [(chunk.sequence.request_id, chunk.start, chunk.length) for chunk in batch]


def advance(scheduler: Scheduler) -> Step:
    """One step as the engine takes it: the tokens are computed, what has ended is removed."""
    batch = scheduler.schedule()
    scheduler.commit(batch)
    for chunk in batch:
        if chunk.is_last:
            chunk.sequence.append(0, frozenset())
        if chunk.sequence.finish_reason:
            scheduler.remove(chunk.sequence)
    return shown(batch)


def run(scheduler: Scheduler) -> list[Step]:
    """All steps until there is nothing left to do."""
    return list(iter(lambda: advance(scheduler), []))


@pytest.mark.parametrize(
    ("limits", "lengths", "steps"),
    [
        pytest.param({}, [], [], id="nothing to do"),
        pytest.param(
            {}, [(3, 3)], [[("a", 0, 3)], [("a", 3, 1)], [("a", 4, 1)]], id="a prompt, then token by token"
        ),
        pytest.param(
            {},
            [(20, 2)],
            [[("a", 0, 8)], [("a", 8, 8)], [("a", 16, 4)], [("a", 20, 1)]],
            id="a long prompt in chunks",
        ),
        pytest.param(
            {},
            [(5, 1), (6, 1)],
            [[("a", 0, 5), ("b", 0, 3)], [("b", 3, 3)]],
            id="the next prompt fills the batch",
        ),
        pytest.param(
            {},
            [(2, 4), (20, 1)],
            [
                [("a", 0, 2), ("b", 0, 6)],
                [("a", 2, 1), ("b", 6, 7)],
                [("a", 3, 1), ("b", 13, 7)],
                [("a", 4, 1)],
            ],
            id="decoding goes on beside a long prompt",
        ),
        pytest.param(
            {},
            [(9, 1), (1, 2)],
            [[("b", 0, 1), ("a", 0, 7)], [("b", 1, 1), ("a", 7, 2)]],
            id="single tokens come before prompts that are older",
        ),
        pytest.param(
            {"max_batch_tokens": 2},
            [(1, 2), (1, 2), (1, 2)],
            [[("a", 0, 1), ("b", 0, 1)], [("a", 1, 1), ("b", 1, 1)], [("c", 0, 1)], [("c", 1, 1)]],
            id="more sequences than tokens in a batch",
        ),
        pytest.param(
            {"max_sequences": 2},
            [(4, 2), (4, 1), (4, 1)],
            [[("a", 0, 4), ("b", 0, 4)], [("a", 4, 1), ("c", 0, 4)]],
            id="the third waits for one of two to end",
        ),
        pytest.param(
            {"num_pages": 4},
            [(6, 2), (8, 4), (1, 1)],
            [
                [("a", 0, 6)],
                [("a", 6, 1)],
                [("c", 0, 1), ("b", 0, 7)],
                [("b", 7, 1)],
                [("b", 8, 1)],
                [("b", 9, 1)],
                [("b", 10, 1)],
            ],
            id="who does not fit into the cache waits, and nobody overtakes",
        ),
    ],
)
def test_steps(limits: dict[str, int], lengths: list[tuple[int, int]], steps: list[Step]) -> None:
    scheduler = make_scheduler(**limits)
    add(scheduler, *lengths)
    assert run(scheduler) == steps


@settings(max_examples=100)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 10)), max_size=10),
    max_batch_tokens=st.integers(1, 16),
    max_sequences=st.integers(1, 4),
    num_pages=st.integers(10, 20),
)
def test_every_token_is_computed_once_in_order_and_within_the_limits(
    lengths: list[tuple[int, int]], max_batch_tokens: int, max_sequences: int, num_pages: int
) -> None:
    scheduler = make_scheduler(max_batch_tokens, max_sequences, num_pages)
    sequences = add(scheduler, *lengths)
    computed = {sequence.request_id: 0 for sequence in sequences}
    for step in run(scheduler):
        assert sum(length for _, _, length in step) <= max_batch_tokens
        assert len(step) <= max_sequences
        for name, start, length in step:
            assert computed[name] == start
            computed[name] += length
    # The last token is an answer's end: nobody asks what would follow it.
    assert list(computed.values()) == [prompt + output - 1 for prompt, output in lengths]
    assert scheduler.kv_cache.num_free_pages == num_pages


@pytest.mark.parametrize("steps", range(5))
def test_a_step_that_is_not_committed_is_scheduled_again(steps: int) -> None:
    scheduler = make_scheduler()
    add(scheduler, (2, 8), (20, 2), (3, 5))
    for _ in range(steps):
        advance(scheduler)
    first = scheduler.schedule()
    assert first
    assert scheduler.schedule() == first


@pytest.mark.parametrize(
    ("name", "steps_before", "running"),
    [
        pytest.param("b", 0, "ac", id="before the first step"),
        pytest.param("c", 1, "ab", id="waiting"),
        pytest.param("b", 1, "ac", id="in its prompt"),
        pytest.param("a", 2, "bc", id="decoding"),
        pytest.param("a", 7, "bc", id="ended"),
    ],
)
def test_remove(name: str, steps_before: int, running: str) -> None:
    """Its place and its pages are free, and the others go on where they were."""
    scheduler = make_scheduler(max_sequences=2)
    removed, *others = sorted(
        add(scheduler, (2, 7), (60, 4), (3, 5)), key=lambda sequence: sequence.request_id != name
    )
    for _ in range(steps_before):
        advance(scheduler)
    computed = [other.num_computed for other in others]
    for _ in range(2):
        scheduler.remove(removed)

    scheduler.schedule()
    assert [sequence.request_id for sequence in scheduler.running] == list(running)
    chunks = [chunk for step in run(scheduler) for chunk in step]
    for other, before in zip(others, computed, strict=True):
        assert next(start for name, start, _ in chunks if name == other.request_id) == before
        assert other.num_computed == other.max_length - 1
    assert scheduler.kv_cache.num_free_pages == scheduler.kv_cache.num_pages


def test_a_sequence_that_was_never_added_can_be_removed() -> None:
    scheduler = make_scheduler()
    (sequence,) = add(make_scheduler(), (1, 1))
    scheduler.remove(sequence)
    assert not scheduler.schedule()
