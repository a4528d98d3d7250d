"""Functions that die at any time do not change any answer."""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from control_plane.engine.engine import Engine
from control_plane.engine.state.sequence import SamplingParams, Sequence
from tests.support.gateways.echo_gateway import asynchronous
from tests.support.models.tiny_engine import idle
from tests.support.running import served

pytestmark = pytest.mark.slow

PROMPTS = 200
AT_ONCE = 8


@dataclass
class FunctionKiller:
    """SIGKILLs a random function of this process every 30 tokens or so.

    It counts tokens rather than seconds, so that work continues however long a restart takes here.
    """

    partition: Path
    kills: int = 0
    _random: random.Random = field(default_factory=lambda: random.Random(0))
    _tokens_to_go: int = 1

    def count_token(self) -> None:
        """Count a token, and kill a function if it is time. The next tokens are being computed meanwhile."""
        self._tokens_to_go -= 1
        if not self._tokens_to_go:
            self._random.choice(function_processes(self.partition)).kill()
            self.kills += 1
            self._tokens_to_go = self._random.randint(1, 60)


def function_processes(partition: Path) -> list[psutil.Process]:
    """This process's living functions of the partition: a fixture may have other functions."""
    alive = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if child.environ().get("FAASMOE_PARTITION") == str(partition):
                alive.append(child)
    return alive


def prompt(number: int) -> Sequence:
    """A prompt of 1 to 40 tokens with an answer of 4 to 8."""
    dice = random.Random(number)
    token_ids = [dice.randrange(3, 280) for _ in range(dice.randint(1, 40))]
    return Sequence(str(number), f"tenant {number % 3}", token_ids, SamplingParams(dice.randint(4, 8)))


async def answer_all(engine: Engine, on_token: Callable[[], None]) -> list[list[int | None]]:
    """The answers to all prompts, AT_ONCE of which run at the same time."""
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
async def test_answers_do_not_change_when_functions_are_killed(chat_partition: Path) -> None:
    async with served(chat_partition) as system:
        undisturbed = await answer_all(system.engine, on_token=lambda: None)
        assert all(undisturbed)
        killer = FunctionKiller(chat_partition)
        assert await answer_all(system.engine, killer.count_token) == undisturbed
        assert killer.kills >= 20
        assert idle(system.engine)
