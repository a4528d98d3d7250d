"""Functions may die at any time, and no request notices."""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from control_plane.engine.engine import Engine
from control_plane.engine.sequence import SamplingParams, Sequence
from tests.support.echo_gateway import asynchronous
from tests.support.running import served
from tests.support.tiny_engine import idle

pytest_plugins = "tests.support.chat_fixtures"

PROMPTS = 200
AT_ONCE = 8


@dataclass
class FunctionKiller:
    """SIGKILLs a random function of this process again and again, with some 30 tokens in between.

    Counting tokens rather than seconds lets the work go on, however long this machine takes for a restart.
    """

    partition: Path
    kills: int = 0
    _random: random.Random = field(default_factory=lambda: random.Random(0))
    _tokens_to_go: int = 1

    def count_token(self) -> None:
        """A token has come; the next ones are being computed meanwhile."""
        self._tokens_to_go -= 1
        if not self._tokens_to_go:
            self._random.choice(function_processes(self.partition)).kill()
            self.kills += 1
            self._tokens_to_go = self._random.randint(1, 60)


def function_processes(partition: Path) -> list[psutil.Process]:
    """Those of this process that are alive and serve the partition: a fixture may have others."""
    alive = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if child.environ().get("FAASMOE_PARTITION") == str(partition):
                alive.append(child)
    return alive


def prompt(number: int) -> Sequence:
    """A prompt of 1 to 40 tokens for 4 to 8 more."""
    dice = random.Random(number)
    token_ids = [dice.randrange(3, 280) for _ in range(dice.randint(1, 40))]
    return Sequence(str(number), f"tenant {number % 3}", token_ids, SamplingParams(dice.randint(4, 8)))


async def answer_all(engine: Engine, on_token: Callable[[], None]) -> list[list[int | None]]:
    """The answers to all prompts, of which several are always under way."""
    turn = asyncio.Semaphore(AT_ONCE)

    async def answer(number: int) -> list[int | None]:
        async with turn:
            tokens = []
            async for _, generated in engine.submit([prompt(number)]):
                tokens.append(generated.token_id)
                on_token()
            return tokens

    return await asyncio.gather(*map(answer, range(PROMPTS)))


@asynchronous
async def test_killing_functions_changes_no_answer(chat_partition: Path) -> None:
    async with served(chat_partition) as system:
        undisturbed = await answer_all(system.engine, on_token=lambda: None)
        assert all(undisturbed)
        killer = FunctionKiller(chat_partition)
        assert await answer_all(system.engine, killer.count_token) == undisturbed
        assert killer.kills >= 20
        assert idle(system.engine)
