"""Cases of what each step computes. Sequences are named by a letter; a page holds 16 tokens."""

from collections import Counter, defaultdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.engine.scheduling.chunk import Chunk
from control_plane.engine.scheduling.express import STEPS_BETWEEN_EXPRESS
from control_plane.engine.scheduling.scheduler import Scheduler
from control_plane.engine.state.sequence import Sequence
from tests.support.scheduling import advance, assert_empty, complete, make_scheduler, make_sequence

Step = list[tuple[str, int, int]]
"""The chunks of a step, each by name, start and length."""


def add(scheduler: Scheduler, *lengths: tuple[int, int], tenant: str = "tenant") -> list[Sequence]:
    """Queue sequences a, b, ... with these numbers of prompt and output tokens."""
    sequences = [
        make_sequence(prompt, output, tenant, name=name)
        for name, (prompt, output) in zip("abcdefghij", lengths, strict=False)
    ]
    for sequence in sequences:
        scheduler.add(sequence)
    return sequences


def shown(batch: list[Chunk]) -> Step:
    return [(chunk.sequence.request_id, chunk.start, chunk.length) for chunk in batch]


def run(scheduler: Scheduler) -> list[Step]:
    """All steps until no sequence is left."""
    return list(iter(lambda: shown(advance(scheduler)), []))


@pytest.mark.parametrize(
    ("limits", "lengths", "steps"),
    [
        pytest.param({}, [], [], id="nothing to do"),
        pytest.param(
            {}, [(3, 3)], [[("a", 0, 3)], [("a", 3, 1)], [("a", 4, 1)]], id="a prompt, then token by token"
        ),
        pytest.param({}, [(9, 0)], [[("a", 0, 8)], [("a", 8, 1)]], id="a prompt alone"),
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
            id="decoding continues during a long prompt",
        ),
        pytest.param(
            {},
            [(9, 1), (1, 2)],
            [[("a", 0, 8)], [("a", 8, 1), ("b", 0, 1)], [("b", 1, 1)]],
            id="first come, first served",
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
            {"num_lanes": 1},
            [(4, 2), (4, 1)],
            [[("a", 0, 4)], [("a", 4, 1)], [("b", 0, 4)]],
            id="the second waits for a lane",
        ),
        pytest.param(
            {"num_pages": 2},
            [(7, 2), (16, 1), (1, 1)],
            [[("a", 0, 7)], [("a", 7, 1)], [("b", 0, 8)], [("b", 8, 8)], [("c", 0, 1)]],
            id="a sequence that does not fit into the cache waits, and none overtakes it",
        ),
        pytest.param(
            {"num_pages": 3},
            [(8, 10), (8, 1)],
            [
                [("a", 0, 8)],
                [("a", 8, 1), ("b", 0, 7)],
                [("a", 9, 1), ("b", 7, 1)],
                *([("a", start, 1)] for start in range(10, 17)),
            ],
            id="a page for each running sequence, and one to grow into",
        ),
        pytest.param(
            {"num_pages": 2},
            [(8, 4), (8, 1)],
            [[("a", 0, 8)], [("a", 8, 1)], [("a", 9, 1)], [("a", 10, 1)], [("b", 0, 8)]],
            id="too few pages for growth",
        ),
        pytest.param(
            {"num_pages": 3},
            [(8, 26), (8, 10)],
            [
                [("a", 0, 8)],
                [("a", 8, 1), ("b", 0, 7)],
                [("a", 9, 1), ("b", 7, 1)],
                *([("a", start, 1), ("b", start - 2, 1)] for start in range(10, 18)),
                *([("a", start, 1)] for start in range(18, 33)),
                [("b", 0, 8)],
                [("b", 8, 8)],
                [("b", 16, 1)],
            ],
            id="the newest is preempted, computes again, and generates nothing twice",
        ),
    ],
)
def test_steps(limits: dict[str, Any], lengths: list[tuple[int, int]], steps: list[Step]) -> None:
    scheduler = make_scheduler(**limits)
    add(scheduler, *lengths)
    assert run(scheduler) == steps
    assert_empty(scheduler)


@pytest.mark.parametrize("steps", range(1, 6))
def test_a_step_that_is_not_committed_is_scheduled_again(steps: int) -> None:
    """Not before the first step: the counters are equal then, and the tie-break depends on what runs."""
    scheduler = make_scheduler()
    add(scheduler, (2, 8), (20, 2), (3, 5))
    add(scheduler, (9, 4), tenant="other")
    for _ in range(steps):
        advance(scheduler)
    first = scheduler.schedule()
    assert first
    assert scheduler.schedule() == first


@pytest.mark.parametrize(
    ("name", "steps_before"),
    [
        pytest.param("b", 0, id="before the first step"),
        pytest.param("c", 1, id="waiting"),
        pytest.param("b", 1, id="in its prompt"),
        pytest.param("a", 2, id="decoding"),
        pytest.param("a", 7, id="ended"),
    ],
)
def test_remove(name: str, steps_before: int) -> None:
    """The sequence's place and memory become free, and the others continue."""
    scheduler = make_scheduler(max_sequences=2)
    sequences = {each.request_id: each for each in add(scheduler, (2, 7), (60, 4), (3, 5))}
    for _ in range(steps_before):
        advance(scheduler)
    removed = sequences.pop(name)
    computed = {each.request_id: each.num_computed for each in sequences.values()}
    for _ in range(2):
        scheduler.remove(removed)
    assert not scheduler.kv_cache.pages.holds(removed)

    chunks = [chunk for step in run(scheduler) for chunk in step]
    for other, sequence in sequences.items():
        assert next(start for name, start, _ in chunks if name == other) == computed[other]
        assert sequence.num_computed == sequence.max_length - 1
    assert_empty(scheduler)


def test_a_sequence_that_was_never_added_can_be_removed() -> None:
    scheduler = make_scheduler()
    scheduler.remove(make_sequence(1))
    assert_empty(scheduler)


TENANTS = st.sampled_from("abc")
LENGTHS = st.tuples(st.integers(1, 70), st.integers(0, 50))
ARRIVALS = st.lists(st.tuples(st.integers(0, 6), TENANTS, LENGTHS, st.integers(0, 60)), max_size=16)
"""Each: steps since the one before, tenant, lengths, and steps until it is cancelled (0 for never)."""


@settings(max_examples=300)
@given(
    arrivals=ARRIVALS,
    max_batch_tokens=st.integers(1, 40),
    max_sequences=st.integers(1, 6),
    num_pages=st.integers(8, 16),
    num_lanes=st.integers(1, 8),
    weights=st.fixed_dictionaries({tenant: st.sampled_from([0.5, 1.0, 2.0]) for tenant in "abc"}),
    fair=st.booleans(),
)
def test_every_sequence_ends_and_frees_its_memory(
    arrivals: list[tuple[int, str, tuple[int, int], int]],
    max_batch_tokens: int,
    max_sequences: int,
    num_pages: int,
    num_lanes: int,
    weights: dict[str, float],
    fair: bool,
) -> None:
    scheduler = make_scheduler(max_batch_tokens, max_sequences, num_pages, num_lanes, fair=fair)
    coming, leaving = timetable(arrivals, weights)
    left: set[Sequence] = set()
    here: set[Sequence] = set()
    step = 0
    while here or step <= max(coming, default=0):
        assert step < 6000, "a sequence starves"
        for sequence in leaving[step]:
            scheduler.remove(sequence)
            left.add(sequence)
        for sequence in coming[step]:
            scheduler.add(sequence)
            here.add(sequence)
        here -= left
        batch = scheduler.schedule()
        check(scheduler, batch)
        assert batch or not here
        complete(scheduler, batch)
        here = {each for each in here if not each.finish_reason}
        step += 1
    for sequence in (each for arrived in coming.values() for each in arrived):
        whole = max(sequence.max_length, sequence.num_prompt_tokens + 1)
        assert sequence in left or len(sequence.token_ids) == whole
    assert_empty(scheduler)


def timetable(
    arrivals: list[tuple[int, str, tuple[int, int], int]], weights: dict[str, float]
) -> tuple[dict[int, list[Sequence]], dict[int, list[Sequence]]]:
    """The sequences that arrive, and those that are cancelled, by step."""
    coming, leaving = defaultdict(list), defaultdict(list)
    now = 0
    for wait, tenant, (prompt, output), patience in arrivals:
        now += wait
        sequence = make_sequence(prompt, output, tenant, weights[tenant])
        coming[now].append(sequence)
        if patience:
            leaving[now + patience].append(sequence)
    return coming, leaving


def check(scheduler: Scheduler, batch: list[Chunk]) -> None:
    """Fail unless the step is within its limits, and its chunks have memory."""
    lengths = [chunk.length for chunk in batch]
    largest = 0 if scheduler.chunks_prompts else max(lengths, default=0)
    assert sum(lengths) - largest <= scheduler.max_batch_tokens
    assert len(batch) <= scheduler.max_sequences
    assert max(Counter(chunk.sequence for chunk in batch).values(), default=1) == 1
    pages = scheduler.kv_cache.pages
    assert 0 <= pages.num_free_pages <= pages.num_pages
    for chunk in batch:
        assert chunk.start == chunk.sequence.num_computed
        assert chunk.start < chunk.end <= len(chunk.sequence.token_ids)
        assert pages.held(chunk.sequence) >= pages.pages_for(chunk.end)


def test_a_newcomers_prompt_has_a_step_of_its_own() -> None:
    """Its first token comes as soon as at an idle engine; then it takes part in the steps for all."""
    scheduler = make_scheduler()
    add(scheduler, (2, 20), (2, 20), tenant="busy")
    for _ in range(STEPS_BETWEEN_EXPRESS):
        advance(scheduler)
    newcomer = make_sequence(3, 20, "modest", name="new")
    scheduler.add(newcomer)
    assert scheduler.running_owners == {"busy"}
    assert shown(advance(scheduler)) == [("new", 0, 3)]
    assert scheduler.running_owners == {"busy", "modest"}
    # A tenant that has been served is none, nor are others until there have been some steps for all.
    scheduler.add(make_sequence(3, 20, "busy", name="c"))
    scheduler.add(make_sequence(1, 20, "another", name="d"))
    for _ in range(STEPS_BETWEEN_EXPRESS):
        assert len(advance(scheduler)) >= 3
    scheduler.add(make_sequence(1, 20, "third", name="e"))
    assert shown(advance(scheduler)) == [("e", 0, 1)]
