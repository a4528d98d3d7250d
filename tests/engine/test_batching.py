"""Many tenants' sequences in one engine over real functions: each gets the tokens that it would get alone."""

import asyncio
import random
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from control_plane.engine.engine import Engine
from control_plane.engine.scheduling.interruption import Interrupted, Interruption
from control_plane.engine.state.sequence import SamplingParams, Sequence
from control_plane.faas.invocation import ExpertUsage
from tests.support.models.tiny_engine import (
    Reference,
    all_tokens_of,
    engine_behind,
    greedy_answers,
    idle,
    tokens_of,
)
from tests.support.running import Served

pytestmark = pytest.mark.slow

PROMPT_LENGTHS = (1, 2, 7, 16, 40, 80, 84, 120)
MAX_TOKENS = 64
NUM_SEQUENCES = 64
NUM_TENANTS = 9
SMALL: dict[str, Any] = {"max_batch_tokens": 48, "max_sequences": 12, "num_pages": 24}
"""Too few pages of 16 tokens for all sequences, so that some are preempted."""


@dataclass
class Guest:
    """A sequence that arrives, and perhaps is cancelled, at some time."""

    sequence: Sequence
    expected: list[int]
    arrival: int
    """Tokens that all sequences together have before this one is submitted."""
    patience: int | None
    """Number of its tokens after which the sequence is cancelled; None is never."""
    tokens: list[int] = field(default_factory=list)


def guests(reference: Reference) -> list[Guest]:
    """Sequences of every length and tenant in random order; one in six is cancelled."""
    dice = random.Random(0)
    invited = []
    for length in PROMPT_LENGTHS:
        generator = torch.Generator().manual_seed(length)
        prompts = torch.randint(64, (NUM_SEQUENCES // len(PROMPT_LENGTHS), length), generator=generator)
        for prompt, answer in zip(
            prompts.tolist(), greedy_answers(reference.model, prompts, MAX_TOKENS), strict=True
        ):
            max_tokens = dice.randint(1, MAX_TOKENS)
            tenant = f"tenant {dice.randrange(NUM_TENANTS)}"
            sequence = Sequence("test", tenant, prompt, SamplingParams(max_tokens))
            patience = dice.randrange(max_tokens) if dice.random() < 1 / 6 else None
            invited.append(Guest(sequence, answer[:max_tokens], max(dice.randrange(-300, 300), 0), patience))
    return invited


class Party:
    """Submits sequences by the number of tokens generated so far, which is the same on every machine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tokens = 0
        self._changed = asyncio.Condition()

    async def attend(self, guest: Guest) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._tokens >= guest.arrival)
        stream = self._engine.submit([guest.sequence])
        if guest.patience == 0:
            self._engine.cancel([guest.sequence])
        async for _, generated in stream:
            assert generated.token_id is not None
            guest.tokens.append(generated.token_id)
            if len(guest.tokens) == guest.patience:
                self._engine.cancel([guest.sequence])
            async with self._changed:
                self._tokens += 1
                self._changed.notify_all()


def test_sequences_arrive_and_are_cancelled_at_random(serving: Served, reference: Reference) -> None:
    invited = guests(reference)

    async def scenario() -> None:
        async with engine_behind(serving.gateway_url, reference, **SMALL) as engine:
            party = Party(engine)
            async with asyncio.timeout(60):
                await asyncio.gather(*map(party.attend, invited))
            assert engine.status().preemptions > 0
            assert idle(engine)

    asyncio.run(scenario())
    for guest in invited:
        if guest.patience is None:
            assert guest.tokens == guest.expected
        else:
            assert guest.patience <= len(guest.tokens)
            assert guest.tokens == guest.expected[: len(guest.tokens)]


def texts(tenant: int, number: int) -> list[Sequence]:
    """A tenant's prompts, which share no token with other tenants'; half of the answers are sampled."""
    dice = random.Random(f"{tenant} {number}")
    alphabet = range(8 * tenant, 8 * tenant + 8)
    sequences = []
    for _ in range(number):
        prompt = [dice.choice(alphabet) for _ in range(dice.randint(1, 60))]
        params = SamplingParams(40)
        if dice.random() < 0.5:
            params = SamplingParams(40, 0.9, top_k=30, top_p=0.95, seed=dice.randrange(1000))
        sequences.append(Sequence("test", f"tenant {tenant}", prompt, params))
    return sequences


def test_tenants_do_not_affect_each_others_tokens(serving: Served, reference: Reference) -> None:
    """Sampled answers, too, equal those of the same prompt and seed alone."""

    def everybody() -> list[Sequence]:
        return [sequence for tenant in range(8) for sequence in texts(tenant, 3)]

    async def scenario() -> tuple[list[list[int]], list[list[int]]]:
        alone = [await tokens_of(serving.engine.submit([sequence])) for sequence in everybody()]
        async with engine_behind(serving.gateway_url, reference, **SMALL) as engine:
            together = await all_tokens_of(engine.submit(everybody()))
            assert engine.status().preemptions > 0
            assert idle(engine)
        return alone, together

    alone, together = asyncio.run(scenario())
    assert together == alone
    for sequence, tokens in zip(everybody(), together, strict=True):
        if not sequence.params.temperature:
            assert tokens == greedy_answers(reference.model, torch.tensor([sequence.token_ids]), 40)[0]


def test_cost_of_functions_is_shared_out_in_full(serving: Served, reference: Reference) -> None:
    sequences = [sequence for tenant in range(8) for sequence in texts(tenant, 2)]

    async def scenario() -> ExpertUsage:
        async with engine_behind(serving.gateway_url, reference, **SMALL) as engine:
            await all_tokens_of(engine.submit(sequences))
            return engine._invoker.usage

    check_shares(sequences, asyncio.run(scenario()))


def check_shares(sequences: list[Sequence], total: ExpertUsage) -> None:
    """Fail unless the sequences' shares add up to the total."""
    shares: dict[str, float] = defaultdict(float)
    for sequence in sequences:
        for name, value in vars(sequence.usage).items():
            shares[name] += value
            assert value > 0 or name.startswith("cold")
    assert shares == pytest.approx(vars(total))


class Interrupting(Interruption):
    """Interrupts every eighth check, whether there is a newcomer or not."""

    def __init__(self) -> None:
        super().__init__()
        self.checks = 0

    def check(self) -> None:
        self.checks += 1
        if self.checks % 8 == 0:
            raise Interrupted


def test_cost_of_abandoned_steps_is_shared_out_too(serving: Served, reference: Reference) -> None:
    """Abandoned steps are charged to their sequences, and computing them again gives the same tokens."""
    sequences = [sequence for tenant in range(8) for sequence in texts(tenant, 2)]

    async def scenario(interruption: Interruption) -> tuple[list[list[int]], ExpertUsage]:
        async with engine_behind(
            serving.gateway_url, reference, **SMALL, interruption=interruption
        ) as engine:
            return await all_tokens_of(engine.submit(sequences)), engine._invoker.usage

    interrupted, total = asyncio.run(scenario(Interrupting()))
    check_shares(sequences, total)
    sequences = [sequence for tenant in range(8) for sequence in texts(tenant, 2)]
    assert asyncio.run(scenario(Interruption()))[0] == interrupted
