"""Several answers to one prompt compute it once, and have the tokens that each would have alone."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
import torch

from control_plane.engine.engine import Engine
from control_plane.engine.scheduling.chunk import Chunk
from control_plane.engine.state.sequence import FinishReason, Generated, SamplingParams, Sequence
from tests.engine.test_step import check_sequence, events_of
from tests.support.models.tiny_engine import (
    MAX_BATCH_TOKENS,
    Reference,
    all_tokens_of,
    engine_behind,
    idle,
    random_prompt,
    tokens_of,
)
from tests.support.running import Served

pytestmark = pytest.mark.slow

PROMPT = 40


def answers(params: list[SamplingParams], length: int = PROMPT, *, share: bool = True) -> list[Sequence]:
    """The sequences of several answers to one prompt."""
    sequences = [Sequence("test", "tenant", random_prompt(length), each) for each in params]
    key = object()
    for sequence in sequences:
        sequence.prompt_key = key if share else None
    return sequences


def count_rows(engine: Engine) -> list[int]:
    """A list that grows by the number of rows of each step that is committed from now on."""
    scheduler: Any = engine._core._scheduler
    commit, rows = scheduler.commit, []

    def counting(batch: list[Chunk]) -> None:
        rows.append(sum(chunk.length for chunk in batch))
        commit(batch)

    scheduler.commit = counting
    return rows


@pytest.mark.parametrize("num_pages", [200, 9], ids=["room for all", "too little memory"])
@pytest.mark.parametrize("max_tokens", [1, 24])
def test_answers_are_those_of_each_alone(
    serving: Served, reference: Reference, num_pages: int, max_tokens: int
) -> None:
    """Greedy and sampled ones. Only the prompt's last row is computed for each of them."""
    greedy, drawn = (
        SamplingParams(max_tokens),
        SamplingParams(max_tokens, 1.0, top_p=0.95, presence_penalty=1.0),
    )
    params = [greedy, replace(drawn, seed=1), replace(drawn, seed=2), greedy, replace(drawn, seed=3)]

    async def scenario() -> None:
        alone = [
            await tokens_of(serving.engine.submit([sequence])) for sequence in answers(params, share=False)
        ]
        async with engine_behind(serving.gateway_url, reference, num_pages=num_pages) as engine:
            rows = count_rows(engine)
            assert await all_tokens_of(engine.submit(answers(params))) == alone
            assert idle(engine)
            if not engine.status().preemptions:
                assert sum(rows) == PROMPT + len(params) - 1 + len(params) * (max_tokens - 1)
            rows.clear()
            assert await all_tokens_of(engine.submit(answers(params, share=False))) == alone
            assert sum(rows) >= len(params) * (PROMPT + max_tokens - 1)
        assert alone[0] == reference.answer(random_prompt(PROMPT), max_tokens)

    asyncio.run(scenario())


@pytest.mark.parametrize("length", [1, 2, MAX_BATCH_TOKENS, MAX_BATCH_TOKENS + 1, 33])
@pytest.mark.parametrize("max_tokens", [0, 3])
def test_log_probabilities_of_the_prompt(
    serving: Served, reference: Reference, length: int, max_tokens: int
) -> None:
    params = [SamplingParams(max_tokens, logprobs=3, prompt_logprobs=True)] * 4
    sequences = answers(params, length)

    async def scenario() -> list[list[Generated]]:
        return await events_of(serving.engine.submit(sequences))

    for sequence, events in zip(sequences, asyncio.run(scenario()), strict=True):
        check_sequence(reference, sequence, events)
    assert idle(serving.engine)


def test_answers_end_at_their_own_time(serving: Served, reference: Reference) -> None:
    """The first is cancelled while the prompt is computed, and others end with their stop tokens."""
    expected = reference.answer(random_prompt(PROMPT), 12)
    stop = expected[5]
    ending = SamplingParams(12, stop_token_ids=frozenset({stop}))
    later = replace(ending, min_tokens=12)
    sequences = answers([SamplingParams(12), SamplingParams(12), ending, later, SamplingParams(2)])

    async def scenario() -> list[list[int]]:
        stream = serving.engine.submit(sequences)
        serving.engine.cancel(sequences[:1])
        return await all_tokens_of(stream)

    first, *others, short = asyncio.run(scenario())
    assert first == expected[: len(first)]
    assert others[:2] == [expected, expected[: expected.index(stop) + 1]]
    assert len(others[2]) == 12
    assert stop not in others[2]
    assert short == expected[:2]
    reasons = [sequence.finish_reason for sequence in sequences[1:]]
    assert reasons == [FinishReason.LENGTH, FinishReason.STOP, FinishReason.LENGTH, FinishReason.LENGTH]
    assert idle(serving.engine)


def test_penalties_and_biases_against_the_unsplit_model(serving: Served, reference: Reference) -> None:
    """Each token is the likeliest of the unsplit model's logits after changes by hand."""
    params = SamplingParams(20, frequency_penalty=0.9, presence_penalty=0.6, logit_bias={3: 1.5, 9: -100.0})
    (sequence,) = answers([params], 12)

    async def scenario() -> list[int]:
        return await tokens_of(serving.engine.submit([sequence]))

    tokens = asyncio.run(scenario())
    plain = reference.answer(random_prompt(12), 20)
    assert tokens != plain
    with torch.inference_mode():
        logits = reference.model(torch.tensor([[*random_prompt(12), *tokens]])).logits[0].float()
    for number, token in enumerate(tokens):
        row = logits[11 + number].clone()
        row[3] += 1.5
        row[9] -= 100
        for seen in set(tokens[:number]):
            row[seen] -= tokens[:number].count(seen) * 0.9 + 0.6
        assert row[token] >= row.max() - 1e-4
