"""A scheduler's steps with a split model: preemption, answers to one prompt, and steps that fail."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from control_plane.engine.experts.dispatcher import RowsFailed
from control_plane.engine.scheduling.chunk import Chunk
from control_plane.engine.scheduling.interruption import Interrupted
from control_plane.engine.scheduling.policy import FirstComeFirstServed
from control_plane.engine.scheduling.scheduler import Scheduler
from control_plane.engine.state.sequence import SamplingParams, Sequence
from control_plane.errors import FunctionUnavailable
from tests.support.models.tiny_families import LocalExperts, SplitModel, prompts, rest

pytestmark = pytest.mark.slow

ANSWER = 12


@pytest.fixture(scope="module", params=["gemma4", "deepseek_v3", "qwen3_next", "deepseek_v4", "jamba"])
def split(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SplitModel:
    """Three ragged models, one with latents and one with states, one in lockstep, and one that takes whole
    prompts."""
    return SplitModel.make(request.param, tmp_path_factory.mktemp(request.param))


def scheduler_of(split: SplitModel, num_pages: int = 4000, max_batch_tokens: int = 16) -> Scheduler:
    memory = split.memory(num_pages)
    return Scheduler(memory, max_batch_tokens, 8, FirstComeFirstServed(), split.model.chunks_prompts)


def run(split: SplitModel, scheduler: Scheduler, sequences: list[Sequence]) -> list[list[Chunk]]:
    """Run the sequences to their ends; returns the steps."""
    for sequence in sequences:
        scheduler.add(sequence)
    steps = []
    while batch := scheduler.schedule():
        logits = split.logits(batch, scheduler.kv_cache)
        scheduler.commit(batch)
        steps.append(batch)
        for chunk, rows in zip(batch, logits, strict=True):
            if chunk.is_last:
                chunk.sequence.append(int(rows[-1].argmax()), frozenset())
                if chunk.sequence.finish_reason:
                    scheduler.remove(chunk.sequence)
    return steps


def assert_right(split: SplitModel, sequence: Sequence) -> None:
    """Fail unless each generated token is the unsplit model's likeliest."""
    answer = Chunk(sequence, 0, len(sequence.token_ids) - 1)
    likeliest = split.expected(answer).argmax(dim=1)[sequence.num_prompt_tokens - 1 :]
    assert likeliest.tolist() == sequence.output_ids


def answering(*lengths: int) -> list[Sequence]:
    params = SamplingParams(ANSWER)
    return [replace(sequence, params=params) for sequence in prompts(*lengths)]


def test_answers_are_those_of_the_unsplit_model(split: SplitModel) -> None:
    sequences = answering(40, 3, 25)
    steps = run(split, scheduler_of(split), sequences)
    for sequence in sequences:
        assert_right(split, sequence)
    largest = max(chunk.length for batch in steps for chunk in batch)
    assert largest == (16 if split.model.chunks_prompts else 40)


def test_preempted_sequences_are_computed_again(split: SplitModel) -> None:
    """Memory has room for one sequence and a half."""
    pages = split.memory().pages
    scheduler = scheduler_of(split, num_pages=pages.pages_for(160) + pages.pages_for(120))
    sequences = [replace(sequence, params=SamplingParams(40)) for sequence in prompts(120, 119)]
    run(split, scheduler, sequences)
    for sequence in sequences:
        assert_right(split, sequence)
    assert scheduler.kv_cache.pages.num_free_pages == scheduler.kv_cache.pages.num_pages
    assert scheduler.num_preemptions


@pytest.mark.parametrize("max_batch_tokens", [16, 64])
def test_answers_to_one_prompt_compute_it_once(split: SplitModel, max_batch_tokens: int) -> None:
    (first,) = answering(30)
    key = object()
    sequences = [replace(first, token_ids=first.token_ids.copy(), prompt_key=key) for _ in range(3)]
    steps = run(split, scheduler_of(split, max_batch_tokens=max_batch_tokens), sequences)
    for sequence in sequences:
        assert_right(split, sequence)
    prompt = sum(chunk.length for batch in steps for chunk in batch if chunk.start < 29)
    assert prompt <= 30


def test_an_answer_that_comes_too_late_to_copy(split: SplitModel) -> None:
    """Where memory keeps no prefixes, it computes the prompt again."""
    (first,) = answering(10)
    key = object()
    early, late = (replace(first, token_ids=first.token_ids.copy(), prompt_key=key) for _ in range(2))
    scheduler = scheduler_of(split)
    scheduler.add(early)
    for _ in range(3):
        batch = scheduler.schedule()
        logits = split.logits(batch, scheduler.kv_cache)
        scheduler.commit(batch)
        if batch[0].is_last:
            early.append(int(logits[0][-1].argmax()), frozenset())
    run(split, scheduler, [late])
    assert_right(split, late)
    assert_right(split, early)


class Failing(LocalExperts):
    """Experts that fail in one layer for some rows, after those of the layers before were computed."""

    def __init__(self, split: SplitModel, error: Exception) -> None:
        super().__init__(split.reference)
        self._error = error

    def begin(self, layer: int, *arguments: Any) -> LocalExperts:
        if layer == 1:
            raise self._error
        return super().begin(layer, *arguments)


@contextmanager
def failing(split: SplitModel, error: Exception) -> Iterator[None]:
    """Until the context ends, experts of the second layer raise the error."""
    split.model.attach(Failing(split, error))  # type: ignore[arg-type]
    try:
        yield
    finally:
        split.model.attach(split.experts)  # type: ignore[arg-type]


def rows_failed(rows: list[bool]) -> RowsFailed:
    return RowsFailed(FunctionUnavailable("gone"), np.array(rows))


@pytest.mark.parametrize("error", [Interrupted(), rows_failed([False, True, True, False]), IndexError()])
def test_a_step_that_fails_changes_nothing(split: SplitModel, error: Exception) -> None:
    memory = split.memory()
    sequences = prompts(9, 2, 5)
    batch = [rest(sequence) for sequence in sequences]
    split.logits(batch, memory)
    for sequence in sequences:
        sequence.num_computed = len(sequence.token_ids)
        sequence.token_ids.append(4)
    sequences[1].token_ids.append(5)
    batch = [rest(sequence) for sequence in sequences]
    if not split.model.chunks_prompts:
        batch = [Chunk(sequence, sequence.num_computed, 1) for sequence in sequences]
    with failing(split, error), pytest.raises(type(error)) as caught:
        split.logits(batch, memory)
    if isinstance(caught.value, RowsFailed) and split.model.chunks_prompts:
        assert caught.value.rows.tolist() == [False, True, True, False]
    assert split.error(batch, memory) < 1e-4
