"""The answers to one prompt compute it once. Sequences are named by a letter; a page holds 16 tokens."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.engine.scheduling.fairness import OUTPUT_COST, PROMPT_COST
from control_plane.engine.scheduling.scheduler import Scheduler
from control_plane.engine.state.kv_cache import KVCache
from control_plane.engine.state.sequence import SamplingParams, Sequence, TokenLogprob
from tests.engine.scheduling.test_scheduler import Step, check, run, shown
from tests.support.scheduling import advance, assert_empty, complete, make_scheduler, make_sequence


def answers(
    number: int, prompt: int, output: int, tenant: str = "tenant", first: str = "a"
) -> list[Sequence]:
    """Sequences a, b, ... of one prompt."""
    names = [chr(ord(first) + each) for each in range(number)]
    sequences = [make_sequence(prompt, output, tenant, name=name) for name in names]
    key = object()
    for sequence in sequences:
        sequence.prompt_key = key
    return sequences


def queued(scheduler: Scheduler, sequences: list[Sequence]) -> list[Sequence]:
    for sequence in sequences:
        scheduler.add(sequence)
    return sequences


@pytest.mark.parametrize(
    ("limits", "lengths", "steps"),
    [
        pytest.param(
            {},
            (3, 20, 2),
            [
                [("a", 0, 8)],
                [("a", 8, 8)],
                [("a", 16, 4)],
                [("a", 20, 1), ("b", 19, 1), ("c", 19, 1)],
                [("b", 20, 1), ("c", 20, 1)],
            ],
            id="the others wait for the prompt, and compute its last row",
        ),
        pytest.param(
            {},
            (3, 17, 1),
            [[("a", 0, 8)], [("a", 8, 8)], [("a", 16, 1), ("b", 16, 1), ("c", 16, 1)]],
            id="all but the last row are ready",
        ),
        pytest.param(
            {},
            (3, 8, 1),
            [[("a", 0, 8)], [("b", 7, 1), ("c", 7, 1)]],
            id="the first ends with the prompt, and leaves it to the next",
        ),
        pytest.param(
            {"num_lanes": 1},
            (3, 8, 2),
            [[("a", 0, 8)], [("a", 8, 1)], [("b", 7, 1)], [("b", 8, 1)], [("c", 7, 1)], [("c", 8, 1)]],
            id="memory for one",
        ),
        pytest.param(
            {"max_sequences": 2},
            (3, 8, 2),
            [[("a", 0, 8)], [("a", 8, 1), ("b", 7, 1)], [("b", 8, 1), ("c", 7, 1)], [("c", 8, 1)]],
            id="two at a time",
        ),
        pytest.param({}, (3, 1, 1), [[("a", 0, 1), ("b", 0, 1), ("c", 0, 1)]], id="nothing to share"),
        pytest.param({}, (2, 8, 0), [[("a", 0, 8)], [("b", 7, 1)]], id="prompts alone"),
    ],
)
def test_steps(limits: dict[str, Any], lengths: tuple[int, int, int], steps: list[Step]) -> None:
    scheduler = make_scheduler(**limits)
    queued(scheduler, answers(*lengths))
    assert run(scheduler) == steps
    assert_empty(scheduler)


@pytest.mark.parametrize(
    ("limits", "lengths", "steps"),
    [
        pytest.param(
            {},
            (3, 10, 2),
            [
                [("a", 0, 8)],
                [("a", 8, 1)],
                [("a", 9, 1), ("b", 9, 1), ("c", 9, 1)],
                [("a", 10, 1), ("b", 10, 1), ("c", 10, 1)],
            ],
            id="the last token of the prompt has a step of its own",
        ),
        pytest.param(
            {"num_lanes": 2},
            (3, 4, 2),
            [
                [("a", 0, 3)],
                [("a", 3, 1), ("b", 3, 1)],
                [("a", 4, 1), ("b", 4, 1)],
                [("c", 0, 3)],
                [("c", 3, 1)],
                [("c", 4, 1)],
            ],
            id="those that come later compute it again",
        ),
        pytest.param(
            {"chunks_prompts": False},
            (2, 20, 1),
            [[("a", 0, 19)], [("a", 19, 1), ("b", 19, 1)]],
            id="prompts as a whole",
        ),
    ],
)
def test_steps_where_memory_has_no_prefixes(
    limits: dict[str, Any], lengths: tuple[int, int, int], steps: list[Step]
) -> None:
    scheduler = make_scheduler(keeps_prefixes=False, **limits)
    queued(scheduler, answers(*lengths))
    assert run(scheduler) == steps
    assert_empty(scheduler)


def test_others_are_served_while_answers_wait_for_their_prompt() -> None:
    scheduler = make_scheduler(max_batch_tokens=12)
    queued(scheduler, answers(2, 9, 1))
    queued(scheduler, answers(2, 3, 1, first="x"))
    assert shown(advance(scheduler)) == [("a", 0, 9), ("x", 0, 3)]
    assert shown(advance(scheduler)) == [("b", 8, 1), ("y", 2, 1)]
    assert_empty(scheduler)


@pytest.mark.parametrize("limits", [{}, {"num_lanes": 1}, {"max_sequences": 2}], ids=str)
def test_the_prompt_is_charged_once(limits: dict[str, Any]) -> None:
    """The counter's unit is the row: the last row of the prompt is computed for each answer."""
    scheduler = make_scheduler(**limits)
    queued(scheduler, answers(4, 20, 3))
    queued(scheduler, [make_sequence(1, 400, "another")])
    while any(
        queue.running or queue.waiting for name, queue in scheduler._queues.all().items() if name == "tenant"
    ):
        spent = scheduler._counters["tenant"]
        advance(scheduler)
    # Before the last step, which ended the last sequence, whose counter may be dropped.
    spent = max(spent, scheduler._counters["tenant"])
    assert spent == (20 + 3) * PROMPT_COST + 4 * 2 * OUTPUT_COST


def test_the_first_is_cancelled_in_its_prompt() -> None:
    """Another computes the prompt from its start: half a prompt is not shared."""
    scheduler = make_scheduler()
    first, *_ = queued(scheduler, answers(3, 20, 1))
    advance(scheduler)
    scheduler.remove(first)
    assert run(scheduler) == [
        [("b", 0, 8)],
        [("b", 8, 8)],
        [("b", 16, 4)],
        [("c", 19, 1)],
    ]
    assert_empty(scheduler)


def test_a_preempted_answer_takes_its_prompt_over_again() -> None:
    scheduler = make_scheduler(num_pages=4)
    first, second = queued(scheduler, answers(2, 15, 30))
    while not scheduler.num_preemptions:
        advance(scheduler)
    assert second.num_computed == 0
    while not first.finish_reason:
        assert {name for name, _, _ in shown(advance(scheduler))} == {"a"}
    # The first has left its memory, with the prompt.
    assert shown(advance(scheduler)) == [("b", 15, 8)]
    run(scheduler)
    assert len(second.output_ids) == 30
    assert_empty(scheduler)


def test_log_probabilities_of_the_prompt_are_taken_over() -> None:
    scheduler = make_scheduler()
    first, second = queued(scheduler, answers(2, 5, 3))
    advance(scheduler)
    first.prompt_logprobs = [TokenLogprob(0, -1.0, ())] * 4
    advance(scheduler)
    assert second.prompt_logprobs == first.prompt_logprobs
    assert second.prompt_logprobs is not first.prompt_logprobs


def test_sequences_without_a_key_share_nothing() -> None:
    scheduler = make_scheduler()
    queued(scheduler, [make_sequence(4, 1, name="a"), make_sequence(4, 1, name="b")])
    assert run(scheduler) == [[("a", 0, 4), ("b", 0, 4)]]


GROUPS = st.lists(
    st.tuples(
        st.integers(0, 5), st.sampled_from("ab"), st.integers(1, 5), st.integers(1, 60), st.integers(0, 40)
    ),
    min_size=1,
    max_size=6,
)
"""Each: steps since the one before, tenant, number of answers, and lengths of prompt and answer."""


@settings(max_examples=60)
@given(
    groups=GROUPS,
    cancelled=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40)), max_size=4),
    max_batch_tokens=st.integers(1, 40),
    max_sequences=st.integers(1, 6),
    num_pages=st.integers(7, 16),
    num_lanes=st.integers(1, 8),
    fair=st.booleans(),
    keeps_prefixes=st.booleans(),
    chunks_prompts=st.booleans(),
)
def test_every_answer_ends_and_reads_only_its_own_prompt(
    groups: list[tuple[int, str, int, int, int]],
    cancelled: list[tuple[int, int]],
    max_batch_tokens: int,
    max_sequences: int,
    num_pages: int,
    num_lanes: int,
    fair: bool,
    keeps_prefixes: bool,
    chunks_prompts: bool,
) -> None:
    """The test writes what a step computes into the cache, and reads the past of each chunk before."""
    scheduler = make_scheduler(
        max_batch_tokens,
        max_sequences,
        num_pages,
        num_lanes,
        fair=fair,
        keeps_prefixes=keeps_prefixes,
        chunks_prompts=chunks_prompts,
    )
    coming: dict[int, list[Sequence]] = {}
    now = 0
    for number, (wait, tenant, choices, prompt, output) in enumerate(groups, start=1):
        now += wait
        key = object()
        for _ in range(choices):
            sequence = Sequence(str(number), tenant, [number] * prompt, SamplingParams(output))
            sequence.prompt_key = key
            coming.setdefault(now, []).append(sequence)
    everybody = [sequence for each in coming.values() for sequence in each]
    leaving = {step: everybody[index % len(everybody)] for step, index in cancelled}
    left: set[Sequence] = set()
    here: set[Sequence] = set()
    step = 0
    while here or step <= now:
        assert step < 6000, "a sequence starves"
        if step in leaving and leaving[step] in here:
            scheduler.remove(leaving[step])
            left.add(leaving[step])
        for sequence in coming.get(step, ()):
            scheduler.add(sequence)
            here.add(sequence)
        here -= left
        batch = scheduler.schedule()
        check(scheduler, batch)
        assert batch or not here
        cache = scheduler.kv_cache
        assert isinstance(cache, KVCache)
        for chunk in batch:
            lane = cache.read(0, cache.pages.lane(chunk.sequence), cache.max_length)[0][0, :, 0]
            own = float(chunk.sequence.request_id)
            assert chunks_prompts or 0 in (chunk.start, chunk.length - 1)
            assert lane[: chunk.start].tolist() == [own] * chunk.start
            lane[chunk.start : chunk.end] = own
        complete(scheduler, batch)
        here = {each for each in here if not each.finish_reason}
        step += 1
    assert_empty(scheduler)
