"""A load of several tenants over minutes: short and long prompts, bursts, and pauses."""

import asyncio
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import aiohttp

from bench.support.open_server import OpenServer
from control_plane.errors import FaaSMoEError


@dataclass(frozen=True)
class Habit:
    """The pattern of one tenant: some requests at once, then a random pause, and so on."""

    tenant: str
    prompt_tokens: int
    output_tokens: int
    at_once: int
    max_pause_s: float
    """Longest pause between requests in seconds."""


HABITS = (
    Habit("chat-1", prompt_tokens=24, output_tokens=24, at_once=1, max_pause_s=0.5),
    Habit("chat-2", prompt_tokens=48, output_tokens=40, at_once=1, max_pause_s=2.0),
    Habit("documents", prompt_tokens=512, output_tokens=8, at_once=1, max_pause_s=4.0),
    Habit("batch", prompt_tokens=64, output_tokens=16, at_once=4, max_pause_s=6.0),
    Habit("burst", prompt_tokens=32, output_tokens=8, at_once=12, max_pause_s=20.0),
    Habit("seldom", prompt_tokens=128, output_tokens=64, at_once=1, max_pause_s=15.0),
)


@dataclass
class MixedLoad:
    """Sends the requests of all HABITS, and counts the answers."""

    server: OpenServer
    answered: int = 0
    errors: list[str] = field(default_factory=list)
    """One message for each failed request."""
    _seeds: Iterator[int] = field(default_factory=itertools.count)

    async def run(self, seconds: float) -> None:
        """Send requests for some seconds, and wait for the last answers."""
        end = asyncio.get_running_loop().time() + seconds
        async with asyncio.TaskGroup() as group:
            for habit in HABITS:
                group.create_task(self._keep_asking(habit, end))

    async def first_token(self) -> float | None:
        """Time to first token of a short prompt, in seconds; None if the request failed."""
        return await self._ask("chat-1", prompt_tokens=24, output_tokens=2)

    async def _keep_asking(self, habit: Habit, end: float) -> None:
        generator = random.Random(habit.tenant)
        while (left := end - asyncio.get_running_loop().time()) > 0:
            asked = (
                self._ask(habit.tenant, habit.prompt_tokens, habit.output_tokens)
                for _ in range(habit.at_once)
            )
            await asyncio.gather(*asked)
            await asyncio.sleep(min(left, generator.uniform(0, habit.max_pause_s)))

    async def _ask(self, tenant: str, prompt_tokens: int, output_tokens: int) -> float | None:
        try:
            timing = await self.server.ask(tenant, prompt_tokens, output_tokens, next(self._seeds))
        except (FaaSMoEError, aiohttp.ClientError, TimeoutError) as error:
            self.errors.append(f"{tenant}: {error or type(error).__name__}")
            return None
        self.answered += 1
        return timing.time_to_first_token
