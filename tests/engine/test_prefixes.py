"""A conversation's next turn computes the new tokens alone, and has the tokens of the whole prompt."""

import asyncio
from dataclasses import replace

import pytest

from control_plane.engine.engine import Engine
from control_plane.engine.state.sequence import SamplingParams, Sequence
from control_plane.engine.stream import TokenStream
from tests.engine.test_sharing import count_rows
from tests.support.models.tiny_engine import Reference, engine_behind, idle, random_prompt, tokens_of
from tests.support.running import Served

pytestmark = pytest.mark.slow

PROMPT, ANSWER, NEW = 40, 8, 5


async def answer(
    engine: Engine, prompt: list[int], tenant: str = "tenant", salt: str = "", max_tokens: int = ANSWER
) -> tuple[list[int], int]:
    """The answer to a prompt, and how many of its tokens were there."""
    sequence = Sequence("test", tenant, prompt.copy(), SamplingParams(max_tokens), cache_salt=salt)
    return await tokens_of(engine.submit([sequence])), sequence.num_cached


async def begun(engine: Engine, prompt: list[int]) -> tuple[Sequence, TokenStream]:
    """A long answer that has its first token."""
    sequence = Sequence("test", "tenant", prompt.copy(), SamplingParams(200))
    stream = engine.submit([sequence])
    await anext(aiter(stream))
    return sequence, stream


def test_turns_of_a_conversation(serving: Served, reference: Reference) -> None:
    async def scenario() -> None:
        async with engine_behind(serving.gateway_url, reference, prefix_cache=True) as engine:
            rows = count_rows(engine)
            text = random_prompt(PROMPT)
            for turn in range(4):
                rows.clear()
                tokens, cached = await answer(engine, text)
                assert tokens == reference.answer(text, ANSWER)
                # The last token of an answer is known, but not computed.
                assert cached == (len(text) - NEW - 1 if turn else 0)
                assert sum(rows) == len(text) - cached + ANSWER - 1
                text = [*text, *tokens, *random_prompt(NEW + turn)[:NEW]]
            assert idle(engine)

    asyncio.run(scenario())


def test_prompts_that_begin_alike(serving: Served, reference: Reference) -> None:
    """Both conversations go on from what they share, and neither loses what it has besides."""

    async def scenario() -> None:
        async with engine_behind(serving.gateway_url, reference, prefix_cache=True) as engine:
            shared = random_prompt(PROMPT)
            one, two = [*shared, *random_prompt(7)], [*shared, *random_prompt(9)]
            for text, expected in ((one, 0), (two, PROMPT), (one, len(one) - 1), (two, len(two) - 1)):
                tokens, cached = await answer(engine, text)
                assert tokens == reference.answer(text, ANSWER)
                assert expected <= cached <= expected + 1

    asyncio.run(scenario())


def test_a_running_sequence_shares_what_it_has_computed(serving: Served, reference: Reference) -> None:
    async def scenario() -> None:
        async with engine_behind(serving.gateway_url, reference, prefix_cache=True) as engine:
            text = random_prompt(PROMPT)
            first, _ = await begun(engine, text)
            tokens, cached = await answer(engine, [*text, 1, 2, 3])
            assert first.finish_reason is None
            assert cached >= PROMPT
            assert tokens == reference.answer([*text, 1, 2, 3], ANSWER)
            engine.cancel([first])

    asyncio.run(scenario())


def test_no_tenant_and_no_salt_sees_another_s(serving: Served, reference: Reference) -> None:
    async def scenario() -> None:
        async with engine_behind(serving.gateway_url, reference, prefix_cache=True) as engine:
            text = random_prompt(PROMPT)
            rows = count_rows(engine)
            computed = []
            for tenant, salt in (("a", ""), ("b", ""), ("a", "salt"), ("b", "salt")):
                rows.clear()
                assert (await answer(engine, text, tenant, salt))[1] == 0
                computed.append(sum(rows))
            # The steps of one who probes are those of one who is alone.
            assert computed == [PROMPT + ANSWER - 1] * 4
            assert (await answer(engine, text, "a", ""))[1] == PROMPT - 1

    asyncio.run(scenario())


def test_what_was_computed_before_a_cancellation_counts(serving: Served, reference: Reference) -> None:
    async def scenario() -> None:
        async with engine_behind(serving.gateway_url, reference, prefix_cache=True) as engine:
            text = random_prompt(PROMPT)
            first, stream = await begun(engine, text)
            engine.cancel([first])
            async for _ in stream:
                pass
            tokens, cached = await answer(engine, text)
            assert (tokens, cached) == (reference.answer(text, ANSWER), PROMPT - 1)

    asyncio.run(scenario())


def test_log_probabilities_of_a_prompt_need_all_of_it(serving: Served, reference: Reference) -> None:
    async def scenario() -> None:
        async with engine_behind(serving.gateway_url, reference, prefix_cache=True) as engine:
            text = random_prompt(PROMPT)
            await answer(engine, text)
            params = SamplingParams(1, logprobs=1, prompt_logprobs=True)
            sequence = Sequence("test", "tenant", text.copy(), params)
            await tokens_of(engine.submit([sequence]))
            assert sequence.num_cached == 0
            assert len(sequence.prompt_logprobs) == PROMPT - 1

    asyncio.run(scenario())


def test_a_sampled_answer_is_the_same_with_and_without(serving: Served, reference: Reference) -> None:
    params = SamplingParams(24, temperature=1.0, top_p=0.95, presence_penalty=1.0, seed=7)
    text = random_prompt(PROMPT)

    async def scenario() -> None:
        async with engine_behind(serving.gateway_url, reference, prefix_cache=True) as engine:
            first = Sequence("test", "tenant", text.copy(), params)
            again = Sequence("test", "tenant", text.copy(), replace(params))
            assert await tokens_of(engine.submit([first])) == await tokens_of(engine.submit([again]))
            assert (first.num_cached, again.num_cached) == (0, PROMPT - 1)

    asyncio.run(scenario())


def test_little_memory(serving: Served, reference: Reference) -> None:
    """Conversations that do not all fit are computed again, with the same tokens."""

    async def scenario() -> None:
        async with engine_behind(serving.gateway_url, reference, prefix_cache=True, num_pages=9) as engine:
            texts = [random_prompt(PROMPT + number) for number in range(4)]
            for _ in range(2):
                for number, text in enumerate(texts):
                    tokens, _ = await answer(engine, text, f"tenant {number % 2}")
                    assert tokens == reference.answer(text, ANSWER)
                    texts[number] = [*text, *tokens, number]
            assert engine.status().prefix_evictions
            assert idle(engine)

    asyncio.run(scenario())
