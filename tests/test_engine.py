"""Sequences come, stop and go in one engine over real functions, and get the unsplit model's tokens."""

import asyncio
import re
from urllib.request import urlopen

import pytest

from control_plane.engine.engine import TokenStream
from control_plane.engine.sequence import FinishReason
from control_plane.errors import ContextLengthExceeded, EngineError, OutOfCache
from control_plane.faas.invocation import ExpertUsage
from tests.running import Served
from tests.tiny_engine import (
    CONTEXT_LENGTH,
    IDLE,
    LONG,
    MAX_SEQUENCES,
    Reference,
    engine_behind,
    make_sequence,
    random_prompt,
    tokens_of,
    until,
)

pytest_plugins = "tests.engine_fixtures"

REQUESTS = [(1, 9), (2, 1), (5, 12), (8, 3), (9, 8), (15, 12), (16, 2), (17, 10), (30, 5), (41, 12)]
"""Lengths of prompts, some of which fill several batches, and of answers."""


def test_many_sequences_at_once(serving: Served, reference: Reference) -> None:
    sequences = [make_sequence(*request) for request in REQUESTS]

    async def scenario() -> list[list[int]]:
        streams = [serving.engine.submit(sequence) for sequence in sequences]
        return await asyncio.gather(*map(tokens_of, streams))

    tokens = asyncio.run(scenario())
    assert tokens == [reference.answer(random_prompt(length), max_tokens) for length, max_tokens in REQUESTS]
    assert tokens == [sequence.output_ids for sequence in sequences]
    assert {sequence.finish_reason for sequence in sequences} == {FinishReason.LENGTH}
    assert serving.engine.status() == IDLE


def test_sequences_that_join_a_running_one(serving: Served, reference: Reference) -> None:
    async def scenario() -> tuple[list[int], list[list[int]]]:
        tokens: list[int] = []
        others: list[TokenStream] = []
        async for token in serving.engine.submit(make_sequence(12, 24)):
            if len(tokens) % 6 == 0:
                others.append(serving.engine.submit(make_sequence(20, 4)))
            tokens.append(token)
        return tokens, await asyncio.gather(*map(tokens_of, others))

    tokens, others = asyncio.run(scenario())
    assert tokens == reference.answer(random_prompt(12), 24)
    assert others == [reference.answer(random_prompt(20), 4)] * 4


def test_eos_ends_an_answer(serving: Served, reference: Reference) -> None:
    lengths = (3, 10, 11, 12)
    sequences = [make_sequence(length, 12) for length in lengths]
    answers = [reference.answer(random_prompt(length), 12) for length in lengths]
    eos = answers[0][4]

    async def scenario() -> list[list[int]]:
        async with engine_behind(serving.gateway_url, reference, eos_ids=frozenset({eos})) as engine:
            return await asyncio.gather(*(tokens_of(engine.submit(sequence)) for sequence in sequences))

    for tokens, answer, sequence in zip(asyncio.run(scenario()), answers, sequences, strict=True):
        stops = eos in answer
        assert tokens == (answer[: answer.index(eos) + 1] if stops else answer)
        assert sequence.finish_reason == (FinishReason.STOP if stops else FinishReason.LENGTH)
    assert {sequence.finish_reason for sequence in sequences} == set(FinishReason)


def test_cancel_running_and_waiting_sequences(serving: Served) -> None:
    engine = serving.engine
    sequences = [make_sequence(3, LONG) for _ in range(MAX_SEQUENCES + 1)]

    async def scenario() -> None:
        *running, waiting = [engine.submit(sequence) for sequence in sequences]
        for stream in running:
            await anext(aiter(stream))
        await until(lambda: engine.status().waiting == 1)
        assert engine.status().running == MAX_SEQUENCES

        engine.cancel(waiting.sequence)
        assert await tokens_of(waiting) == []
        assert (engine.status().running, engine.status().waiting) == (MAX_SEQUENCES, 0)

        for stream in running:
            engine.cancel(stream.sequence)
            await tokens_of(stream)
        assert engine.status() == IDLE

    asyncio.run(scenario())
    assert all(len(sequence.output_ids) < LONG for sequence in sequences)


def test_cancelling_makes_room(serving: Served, reference: Reference) -> None:
    async def scenario() -> list[int]:
        streams = [serving.engine.submit(make_sequence(3, LONG)) for _ in range(MAX_SEQUENCES)]
        waiting = serving.engine.submit(make_sequence(20, 4))
        await until(lambda: serving.engine.status().waiting == 1)
        serving.engine.cancel(streams[0].sequence)
        tokens = await tokens_of(waiting)
        for stream in streams:
            serving.engine.cancel(stream.sequence)
            await tokens_of(stream)
        return tokens

    assert asyncio.run(scenario()) == reference.answer(random_prompt(20), 4)
    assert serving.engine.status() == IDLE


def test_cancelling_what_does_not_run_is_harmless(serving: Served, reference: Reference) -> None:
    ended, unknown = make_sequence(5, 2), make_sequence(5, 2)

    async def scenario() -> list[int]:
        await tokens_of(serving.engine.submit(ended))
        for sequence in (ended, ended, unknown):
            serving.engine.cancel(sequence)
        return await tokens_of(serving.engine.submit(make_sequence(5, 2)))

    assert asyncio.run(scenario()) == reference.answer(random_prompt(5), 2)


@pytest.mark.parametrize(
    ("length", "max_tokens", "error", "message"),
    [
        (0, 5, EngineError, "the prompt is empty"),
        (CONTEXT_LENGTH, 1, ContextLengthExceeded, "16384 of the prompt and 1 to generate are 16385"),
        (5, CONTEXT_LENGTH, ContextLengthExceeded, "5 of the prompt and 16384 to generate are 16389"),
        (CONTEXT_LENGTH - 1, 1, OutOfCache, "16384 tokens do not fit into the KV cache of 14560"),
    ],
)
def test_a_sequence_that_could_never_run_is_refused(
    serving: Served, length: int, max_tokens: int, error: type[EngineError], message: str
) -> None:
    async def scenario() -> None:
        serving.engine.submit(make_sequence(length, max_tokens))

    with pytest.raises(error, match=message) as caught:
        asyncio.run(scenario())
    assert caught.type is error
    assert serving.engine.status() == IDLE


def test_usage_is_what_the_functions_have_counted(serving: Served, reference: Reference) -> None:
    def invocations() -> int:
        total = 0
        for block in reference.manifest.blocks:
            with urlopen(f"{serving.gateway_url}/function/{block.function}/metrics") as answer:
                metrics = answer.read().decode()
            total += sum(map(int, re.findall(r"^faasmoe_function_invocations_total (\d+)$", metrics, re.M)))
        return total

    async def usage() -> ExpertUsage:
        stream = serving.engine.submit(make_sequence(20, 6))
        await tokens_of(stream)
        return stream.sequence.usage

    asyncio.run(usage())
    before = invocations()
    warm = asyncio.run(usage())
    assert warm.invocations == invocations() - before > 0
    assert warm.cold_starts == 0
    assert warm.wire_bytes > 0
    assert warm.seconds > 0
