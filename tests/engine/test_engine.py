"""Sequences in one engine over real functions get the unsplit model's tokens, whichever join or leave."""

import asyncio
import re
from urllib.request import urlopen

import pytest

from control_plane.engine.state.sequence import FinishReason, Generated
from control_plane.engine.state.stopwatch import StepPart
from control_plane.engine.stream import TokenStream
from control_plane.errors import ContextLengthExceeded, EngineError, OutOfCache
from control_plane.faas.invocation import ExpertUsage
from tests.support.models.tiny_engine import (
    CONTEXT_LENGTH,
    LONG,
    MAX_BATCH_TOKENS,
    MAX_SEQUENCES,
    Reference,
    engine_behind,
    idle,
    make_sequence,
    random_prompt,
    tokens_of,
    until,
)
from tests.support.running import Served

REQUESTS = [(1, 9), (2, 1), (5, 12), (8, 3), (9, 8), (15, 12), (16, 2), (17, 10), (30, 5), (41, 12)]
"""Lengths of prompts and answers; some prompts fill several batches."""


def test_many_sequences_at_once(serving: Served, reference: Reference) -> None:
    sequences = [make_sequence(*request) for request in REQUESTS]

    async def scenario() -> list[list[int]]:
        streams = [serving.engine.submit([sequence]) for sequence in sequences]
        return await asyncio.gather(*map(tokens_of, streams))

    tokens = asyncio.run(scenario())
    assert tokens == [reference.answer(random_prompt(length), max_tokens) for length, max_tokens in REQUESTS]
    assert tokens == [sequence.output_ids for sequence in sequences]
    assert {sequence.finish_reason for sequence in sequences} == {FinishReason.LENGTH}
    assert idle(serving.engine)


def test_sequences_that_join_a_running_batch(serving: Served, reference: Reference) -> None:
    async def scenario() -> tuple[list[int | None], list[list[int]]]:
        tokens: list[int | None] = []
        others: list[TokenStream] = []
        async for _, generated in serving.engine.submit([make_sequence(12, 24)]):
            if len(tokens) % 6 == 0:
                others.append(serving.engine.submit([make_sequence(20, 4)]))
            tokens.append(generated.token_id)
        return tokens, await asyncio.gather(*map(tokens_of, others))

    tokens, others = asyncio.run(scenario())
    assert tokens == reference.answer(random_prompt(12), 24)
    assert others == [reference.answer(random_prompt(20), 4)] * 4


def test_the_sequences_of_one_request(serving: Served, reference: Reference) -> None:
    """There are more than can run at the same time, and one is cancelled."""
    lengths = [3, 10, 20, 12, 7, 5, 30]
    sequences = [make_sequence(length, 5) for length in lengths]
    long = make_sequence(4, LONG)

    async def scenario() -> dict[int, list[int]]:
        tokens: dict[int, list[int]] = {number: [] for number in range(len(lengths) + 1)}
        async for number, generated in serving.engine.submit([*sequences, long]):
            assert generated.token_id is not None
            tokens[number].append(generated.token_id)
            if number == len(lengths):
                serving.engine.cancel([long])
        return tokens

    tokens = asyncio.run(scenario())
    assert tokens.pop(len(lengths)) == long.output_ids
    assert 0 < len(long.output_ids) < LONG
    assert list(tokens.values()) == [reference.answer(random_prompt(length), 5) for length in lengths]
    assert idle(serving.engine)


def test_a_prompt_alone(serving: Served) -> None:
    """The stream yields the end, and no token."""

    async def scenario() -> list[tuple[int, Generated]]:
        return [event async for event in serving.engine.submit([make_sequence(20, 0)])]

    assert asyncio.run(scenario()) == [(0, Generated(None, None, FinishReason.LENGTH))]
    assert idle(serving.engine)


def test_eos_ends_an_answer(serving: Served, reference: Reference) -> None:
    lengths = (3, 10, 11, 12)
    sequences = [make_sequence(length, 12) for length in lengths]
    answers = [reference.answer(random_prompt(length), 12) for length in lengths]
    eos = answers[0][4]

    async def scenario() -> list[list[int]]:
        async with engine_behind(serving.gateway_url, reference, eos_ids=frozenset({eos})) as engine:
            return await asyncio.gather(*(tokens_of(engine.submit([sequence])) for sequence in sequences))

    for tokens, answer, sequence in zip(asyncio.run(scenario()), answers, sequences, strict=True):
        stops = eos in answer
        assert tokens == (answer[: answer.index(eos) + 1] if stops else answer)
        assert sequence.finish_reason == (FinishReason.STOP if stops else FinishReason.LENGTH)
    assert {sequence.finish_reason for sequence in sequences} == {FinishReason.STOP, FinishReason.LENGTH}


def test_cancel_running_and_waiting_sequences(serving: Served) -> None:
    engine = serving.engine
    sequences = [make_sequence(3, LONG) for _ in range(MAX_SEQUENCES + 1)]

    async def scenario() -> None:
        *running, waiting = [engine.submit([sequence]) for sequence in sequences]
        for stream in running:
            await anext(aiter(stream))
        await until(lambda: engine.status().waiting == 1)
        assert engine.status().running == MAX_SEQUENCES

        engine.cancel(waiting.sequences)
        assert await tokens_of(waiting) == []
        assert (engine.status().running, engine.status().waiting) == (MAX_SEQUENCES, 0)

        for stream in running:
            engine.cancel(stream.sequences)
            await tokens_of(stream)
        assert idle(engine)

    asyncio.run(scenario())
    assert all(len(sequence.output_ids) < LONG for sequence in sequences)


def test_cancelling_makes_room(serving: Served, reference: Reference) -> None:
    async def scenario() -> list[int]:
        streams = [serving.engine.submit([make_sequence(3, LONG)]) for _ in range(MAX_SEQUENCES)]
        waiting = serving.engine.submit([make_sequence(20, 4)])
        await until(lambda: serving.engine.status().waiting == 1)
        serving.engine.cancel(streams[0].sequences)
        tokens = await tokens_of(waiting)
        for stream in streams:
            serving.engine.cancel(stream.sequences)
            await tokens_of(stream)
        return tokens

    assert asyncio.run(scenario()) == reference.answer(random_prompt(20), 4)
    assert idle(serving.engine)


def test_cancelling_an_ended_or_unknown_sequence_does_nothing(serving: Served, reference: Reference) -> None:
    ended, unknown = make_sequence(5, 2), make_sequence(5, 2)

    async def scenario() -> list[int]:
        await tokens_of(serving.engine.submit([ended]))
        for sequence in (ended, ended, unknown):
            serving.engine.cancel([sequence])
        return await tokens_of(serving.engine.submit([make_sequence(5, 2)]))

    assert asyncio.run(scenario()) == reference.answer(random_prompt(5), 2)


@pytest.mark.parametrize(
    ("length", "max_tokens", "error", "message"),
    [
        (0, 5, EngineError, "the prompt is empty"),
        (CONTEXT_LENGTH, 1, ContextLengthExceeded, "16384 of the prompt and 1 to generate are 16385"),
        (5, CONTEXT_LENGTH, ContextLengthExceeded, "5 of the prompt and 16384 to generate are 16389"),
        (CONTEXT_LENGTH - 1, 1, OutOfCache, "16384 tokens do not fit into the KV cache of 10912"),
    ],
)
def test_a_sequence_that_could_never_run_is_refused(
    serving: Served, length: int, max_tokens: int, error: type[EngineError], message: str
) -> None:
    async def scenario() -> None:
        serving.engine.submit([make_sequence(length, max_tokens)])

    with pytest.raises(error, match=message) as caught:
        asyncio.run(scenario())
    assert caught.type is error
    assert idle(serving.engine)


def test_usage_equals_the_functions_own_counts(serving: Served, reference: Reference) -> None:
    def invocations() -> int:
        total = 0
        for block in reference.manifest.blocks:
            with urlopen(f"{serving.gateway_url}/function/{block.function}/metrics") as answer:
                metrics = answer.read().decode()
            total += sum(map(int, re.findall(r"^faasmoe_function_invocations_total (\d+)$", metrics, re.M)))
        return total

    async def usage() -> ExpertUsage:
        stream = serving.engine.submit([make_sequence(20, 6)])
        await tokens_of(stream)
        return stream.sequences[0].usage

    asyncio.run(usage())
    before = invocations()
    warm = asyncio.run(usage())
    assert warm.invocations == invocations() - before > 0
    assert warm.cold_starts == 0
    assert warm.wire_bytes > 0
    assert warm.seconds > 0


def test_status_has_the_time_of_each_part(serving: Served) -> None:
    before = serving.engine.status()

    async def answer() -> None:
        await tokens_of(serving.engine.submit([make_sequence(20, 6)]))

    asyncio.run(answer())
    after = serving.engine.status()
    assert after.steps - before.steps == -(-20 // MAX_BATCH_TOKENS) + 5
    spent = {part for part, seconds in after.step_seconds.items() if seconds > before.step_seconds[part]}
    assert spent >= {
        StepPart.DENSE,
        StepPart.SEND,
        StepPart.WAIT,
        StepPart.ADD,
        StepPart.HEAD,
        StepPart.SAMPLE,
        StepPart.SCHEDULE,
    }
