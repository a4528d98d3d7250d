"""A row whose logits are not numbers fails its own request, and no other."""

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest

from control_plane.engine.state.sequence import Generated, SamplingParams, Sequence
from control_plane.engine.stream import TokenStream
from control_plane.errors import EngineError
from tests.support.models.tiny_engine import (
    Reference,
    all_tokens_of,
    embedded_as,
    idle,
    random_prompt,
    token_apart_from,
    tokens_of,
    until,
)
from tests.support.running import Served


def sequence(tenant: str, token_ids: list[int], max_tokens: int) -> Sequence:
    return Sequence(tenant, tenant, token_ids, SamplingParams(max_tokens))


async def first_of(stream: TokenStream) -> AsyncIterator[tuple[int, Generated]]:
    async for event in stream:
        yield event
        return


def test_other_sequences_continue(serving: Served, reference: Reference) -> None:
    prompt = random_prompt(12)
    expected = reference.answer(prompt, 30)
    poison = token_apart_from(*prompt, *expected)

    async def run() -> list[int]:
        stream = serving.engine.submit([sequence("good", prompt, 30)])
        first = [generated.token_id async for _, generated in first_of(stream)]
        good = asyncio.create_task(tokens_of(stream))
        # The running sequence has one row, so both of these fit into the same step.
        bad = [sequence("bad", [poison, 2], 5), sequence("bad", [3, 4], 5)]
        with pytest.raises(EngineError, match="not a number"):
            await all_tokens_of(serving.engine.submit(bad))
        return [token for token in first if token is not None] + await good

    with embedded_as(serving.runner.model, poison, lambda rows: np.full_like(rows, np.nan)):
        assert asyncio.run(run()) == expected
    assert serving.engine.alive
    asyncio.run(until(lambda: idle(serving.engine)))
