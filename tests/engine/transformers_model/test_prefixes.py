"""Conversations that go on from what is kept, in every kind of memory, have the unsplit model's answers."""

from collections.abc import Sequence as Items

import pytest

from control_plane.engine.scheduling.policy import FirstComeFirstServed
from control_plane.engine.scheduling.scheduler import Scheduler
from control_plane.engine.state.sequence import SamplingParams, Sequence
from tests.engine.transformers_model.test_steps import assert_right, run
from tests.support.models.tiny_families import SplitModel, prompts
from tests.support.scheduling import evict_all

pytestmark = pytest.mark.slow

ANSWER = 6


@pytest.fixture(scope="module", params=["gemma4", "deepseek_v3", "qwen3_next", "lfm2_moe", "deepseek_v4"])
def split(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SplitModel:
    """Two that keep keys and values, one of them with windows, one with latents; states; lockstep."""
    return SplitModel.make(request.param, tmp_path_factory.mktemp(request.param))


def scheduler_of(split: SplitModel, num_pages: int = 4000) -> Scheduler:
    model = split.model
    policy = FirstComeFirstServed()
    return Scheduler(split.memory(num_pages), 16, 8, policy, model.chunks_prompts, keeps_prefixes=True)


def turn(split: SplitModel, scheduler: Scheduler, text: Items[int], stops: tuple[int, ...]) -> Sequence:
    """The answer to a prompt, which must be right."""
    sequence = Sequence("test", "tenant", list(text), SamplingParams(ANSWER), stops=stops)
    run(split, scheduler, [sequence])
    assert_right(split, sequence)
    return sequence


def test_turns_and_forks(split: SplitModel) -> None:
    first, second, third, fourth = (each.token_ids for each in prompts(40, 9, 8, 7))
    scheduler = scheduler_of(split)
    one = turn(split, scheduler, first, (20, 36))
    assert one.num_cached == 0

    # The next turn has all of it; the last token of the answer was not computed.
    two = turn(split, scheduler, [*one.token_ids, *second], (20, 50))
    assert two.num_cached == len(one.token_ids) - 1

    # A turn without the end of the last prompt and its answer goes on from the last stop before it.
    three = turn(split, scheduler, [*two.token_ids[:52], *third], (20, 58))
    assert three.num_cached == (52 if scheduler.kv_cache.keeps_prefixes else 50)

    # Another conversation shares the first message alone.
    four = turn(split, scheduler, [*first[:22], *fourth], (20, 28))
    assert four.num_cached == (22 if scheduler.kv_cache.keeps_prefixes else 20)

    # None of them has lost anything.
    again = turn(split, scheduler, [*three.token_ids, *fourth], (20, 70))
    assert again.num_cached == len(three.token_ids) - 1
    other = turn(split, scheduler, [*four.token_ids, *second], (20, 40))
    assert other.num_cached == len(four.token_ids) - 1


def test_little_memory(split: SplitModel) -> None:
    """Two conversations in the memory of one and a half take it from each other, and stay right."""
    pages = split.memory().pages
    scheduler = scheduler_of(split, num_pages=2 * pages.pages_for(80))
    texts = [each.token_ids for each in prompts(60, 61)]
    for _ in range(3):
        for number, text in enumerate(texts):
            sequence = turn(split, scheduler, text, (20, len(text) - 2))
            texts[number] = [*sequence.token_ids, *text[:3]]
    evict_all(scheduler)
    assert scheduler.kv_cache.pages.num_free_pages == scheduler.kv_cache.pages.num_pages
