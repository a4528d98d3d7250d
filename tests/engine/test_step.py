"""Log-probabilities of prompts and answers equal the unsplit model's, however steps divide the prompt."""

import asyncio

import pytest
import torch

from control_plane.engine.state.sequence import Generated, SamplingParams, Sequence, TokenLogprob
from control_plane.engine.stream import TokenStream
from tests.support.models.tiny_engine import Reference, engine_behind, idle, random_prompt
from tests.support.running import Served

TOLERANCE = 1e-4
LENGTHS = [1, 2, 8, 9, 20, 70, 150]
"""Prompts of less than a step, of several steps, and of more rows than LOGITS_ROWS."""


def make_sequence(length: int, max_tokens: int, num_top: int | None = 3, *, prompt: bool = True) -> Sequence:
    params = SamplingParams(max_tokens, logprobs=num_top, prompt_logprobs=prompt)
    return Sequence("test", f"tenant {length}", random_prompt(length), params)


async def events_of(stream: TokenStream) -> list[list[Generated]]:
    """The tokens of each of the stream's sequences, as events."""
    events: list[list[Generated]] = [[] for _ in stream.sequences]
    async for number, generated in stream:
        events[number].append(generated)
    return events


def check(reference: Reference, token_ids: list[int], reported: list[TokenLogprob], num_top: int) -> None:
    """Fail unless `reported` has the unsplit model's log-probabilities of the last of these tokens."""
    with torch.inference_mode():
        logits = reference.model(torch.tensor([token_ids])).logits[0, :-1]
    expected = logits.log_softmax(dim=-1)[len(token_ids) - 1 - len(reported) :]
    assert [each.token_id for each in reported] == token_ids[len(token_ids) - len(reported) :]
    for row, each in zip(expected, reported, strict=True):
        assert each.logprob == pytest.approx(float(row[each.token_id]), abs=TOLERANCE)
        values, order = row.topk(num_top)
        assert [logprob for _, logprob in each.top] == pytest.approx(values.tolist(), abs=TOLERANCE)
        assert [token for token, _ in each.top] == order.tolist()


def check_sequence(
    reference: Reference, sequence: Sequence, events: list[Generated], num_top: int = 3
) -> None:
    prompt = sequence.token_ids[: sequence.num_prompt_tokens]
    assert len(sequence.prompt_logprobs) == len(prompt) - 1
    check(reference, prompt, sequence.prompt_logprobs, num_top)
    generated = [event.logprob for event in events if event.logprob]
    assert len(generated) == len(sequence.output_ids) == sequence.params.max_tokens
    check(reference, sequence.token_ids, generated, num_top)


def test_prompts_and_answers(serving: Served, reference: Reference) -> None:
    sequences = [make_sequence(length, 6) for length in LENGTHS]
    events = asyncio.run(submitted(serving, sequences))
    for sequence, each in zip(sequences, events, strict=True):
        check_sequence(reference, sequence, each)
    assert idle(serving.engine)


async def submitted(serving: Served, sequences: list[Sequence]) -> list[list[Generated]]:
    return await events_of(serving.engine.submit(sequences))


def test_prompts_alone(serving: Served, reference: Reference) -> None:
    """Evaluation harnesses send such requests: nothing is generated."""
    sequences = [make_sequence(length, 0, 1) for length in LENGTHS]
    events = asyncio.run(submitted(serving, sequences))
    for sequence, each in zip(sequences, events, strict=True):
        check_sequence(reference, sequence, each, 1)
        assert [generated.token_id for generated in each] == [None]
    assert idle(serving.engine)


@pytest.mark.parametrize("num_top", [0, 1, 64])
def test_the_number_of_likeliest_tokens(serving: Served, reference: Reference, num_top: int) -> None:
    sequence = make_sequence(12, 3, num_top)
    (events,) = asyncio.run(submitted(serving, [sequence]))
    check_sequence(reference, sequence, events, num_top)


def test_only_requested_log_probabilities_are_computed(serving: Served) -> None:
    nothing = make_sequence(12, 3, None, prompt=False)
    answer = make_sequence(13, 3, 1, prompt=False)
    prompt = make_sequence(14, 3, None)
    events = asyncio.run(submitted(serving, [nothing, answer, prompt]))
    reported = [sum(generated.logprob is not None for generated in each) for each in events]
    assert reported == [0, 3, 0]
    assert [len(sequence.prompt_logprobs) for sequence in (nothing, answer, prompt)] == [0, 0, 13]


def test_sampling_does_not_change_log_probabilities(serving: Served, reference: Reference) -> None:
    """Log-probabilities are the model's own, before temperature, penalty and the like."""
    params = SamplingParams(
        8, 1.5, top_k=9, min_p=0.01, repetition_penalty=1.4, seed=1, logprobs=2, prompt_logprobs=True
    )
    sequence = Sequence("test", "tenant", random_prompt(10), params)
    (events,) = asyncio.run(submitted(serving, [sequence]))
    check_sequence(reference, sequence, events, 2)


def test_after_preemption(serving: Served, reference: Reference) -> None:
    """There are 16 pages of 16 tokens. Results from before a preemption are not reported again."""
    sequences = [make_sequence(length, 40) for length in (3, 40, 12, 90, 30)]

    async def scenario() -> list[list[Generated]]:
        async with engine_behind(serving.gateway_url, reference, max_batch_tokens=32, num_pages=16) as engine:
            events = await events_of(engine.submit(sequences))
            assert engine.status().preemptions > 0
            assert idle(engine)
            return events

    for sequence, events in zip(sequences, asyncio.run(scenario()), strict=True):
        check_sequence(reference, sequence, events)
