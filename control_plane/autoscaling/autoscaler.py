"""Runs the policy: observes functions and memory, decides, applies through the gateway."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from control_plane.autoscaling.footprint import FUNCTION_OVERHEAD_BYTES, Footprint, MemoryUse
from control_plane.autoscaling.observer import Observer
from control_plane.autoscaling.policy import (
    Action,
    Limit,
    Observed,
    Release,
    Settings,
    Sleep,
    Wake,
    decide,
    to_wake,
)
from control_plane.errors import GatewayError
from control_plane.faas.gateways import Gateways
from control_plane.faas.invocation import ResidentLimits
from control_plane.faas.statistics import FunctionStatistics
from functions.contract.wire import ResidencyReport

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 1.0
"""Between two looks while requests run."""
RETRY_SECONDS = 5.0
"""After the gateway, or a function, has failed."""
WAKE_SECONDS = 60.0
SLEEP_SECONDS = 90.0
"""A gateway may let calls come to their end first."""
LIMIT_SECONDS = 10.0
LIST_SECONDS = 10.0


@dataclass
class Autoscaler:
    """One task; `prompted` is for whoever takes requests in."""

    gateway: Gateways
    statistics: Mapping[str, FunctionStatistics]
    footprint: Footprint
    budget: int | None
    idle_timeout: float
    """Seconds."""
    own_bytes: Callable[[], int]
    """What this process uses now."""
    busy: Callable[[], bool]
    """Whether requests run."""
    limits: ResidentLimits
    """Written here, and read by whoever sends invocations."""
    give_back: Callable[[], None]
    """Has this process let go of memory that it does not use; may take a while."""
    actions: Counter[str] = field(default_factory=Counter)
    """How often each kind of action has been taken."""
    _observer: Observer = field(init=False)
    _settings: Settings = field(init=False)
    _limits: dict[str, int] = field(default_factory=dict)
    _prompt: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _away: bool = False
    """Whether it is said already that the gateway, or a function, does not do as it should."""
    _refused: bool = False
    """Whether it is said already that the gateway does not scale to zero."""

    def __post_init__(self) -> None:
        blocks, nbytes = self.footprint.blocks, self.footprint.expert_nbytes
        self._observer = Observer(nbytes, frozenset(blocks))
        self._settings = Settings(self.budget, self.idle_timeout, nbytes, blocks)
        if self.budget is not None:
            # Until the gateway has told who is there: a call may come first.
            self._limits = {name: block.least * nbytes for name, block in blocks.items()}
            self.limits.replace(self._limits)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The task runs for as long as the context lasts."""
        self._spawn(self._run())
        try:
            yield
        finally:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def prompted(self) -> None:
        """A prompt has arrived: the functions that it will need are woken, while it goes its own way."""
        if self._observer.any_asleep:
            for name in to_wake(self._observer.states(self.statistics, time.monotonic())):
                self._begin_wake(name)
        self._prompt.set()

    def memory(self, awake: Collection[str] | None = None) -> MemoryUse:
        """What everything takes, as far as answers have told.

        `awake` are the functions that take calls, for whoever knows better than by the last look.
        """
        awake = self._observer.awake if awake is None else awake
        reports = [self.statistics[name].residency.last for name in awake if name in self.statistics]
        overhead = sum(report.overhead_bytes or FUNCTION_OVERHEAD_BYTES for report in reports)
        overhead += (len(awake) - len(reports)) * FUNCTION_OVERHEAD_BYTES
        experts = sum(report.resident_bytes for report in reports)
        return MemoryUse(self.budget, self.footprint.least, self.own_bytes(), overhead, experts)

    async def _run(self) -> None:
        while True:
            prompted = self._prompt.is_set()
            self._prompt.clear()
            try:
                await self._round(prompted)
                pause = INTERVAL_SECONDS if prompted or self.busy() else self._until_idle()
                self._away = False
            except GatewayError as error:
                self._fail(error)
                pause = RETRY_SECONDS
            except Exception:
                # The edge of the task: whatever one round meets, requests are served and the next one comes.
                logger.exception("autoscaling failed")
                pause = RETRY_SECONDS
            # Unlike wait_for, this does not lose a cancellation that comes together with a prompt.
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._prompt.wait()

    async def _round(self, prompted: bool) -> None:
        asked = time.monotonic()
        async with _deadline("list its functions", LIST_SECONDS):
            listed = await self.gateway.functions()
        now = time.monotonic()
        self._observer.listed(listed, asked, now)
        self._observer.answered(self.statistics, now, time.time())
        if self.busy():
            self._observer.awaited(now)
        own = max(self.footprint.control_plane, self.own_bytes())
        functions = self._observer.states(self.statistics, now)
        await self._apply(decide(Observed(functions, own, prompted), self._settings))

    def _until_idle(self) -> float | None:
        """Seconds until a function will have idled for too long; None when there is none that could.

        Less, where the last list did not tell how all functions are.
        """
        if not self._observer.is_current:
            return INTERVAL_SECONDS
        states = self._observer.states(self.statistics, time.monotonic()).values()
        waits = [
            self.idle_timeout - state.idle_seconds
            for state in states
            if state.replicas and not state.released
        ]
        return None if not waits else min(waits) if min(waits) > 0 else RETRY_SECONDS

    async def _apply(self, actions: list[Action]) -> None:
        """What may take long goes on beside the next rounds."""
        for action in actions:
            match action:
                case Wake(name):
                    self._begin_wake(name)
                case Sleep(name):
                    # At once: nobody is to ask it for anything any more.
                    self._observer.going_to_zero(name)
                    self._spawn(self._sleep(name))
                case Release(name):
                    self._spawn(self._release(name))
        if any(isinstance(action, Sleep | Release) for action in actions):
            self._spawn(asyncio.to_thread(self.give_back))
        limits = [action for action in actions if isinstance(action, Limit)]
        # Functions that may hold more wait for those that may hold less.
        await self._limit([limit for limit in limits if not limit.grows])
        await self._limit([limit for limit in limits if limit.grows])

    async def _limit(self, limits: list[Limit]) -> None:
        """Invocations tell the functions from now on; those that are to hold less are also told at once."""
        nbytes = self.footprint.expert_nbytes
        self._limits |= {limit.function: limit.experts * nbytes for limit in limits}
        self.limits.replace(self._limits)
        awake = frozenset(self._observer.awake)
        failures = await asyncio.gather(
            *(self._shrink(limit) for limit in limits if not limit.grows and limit.function in awake),
            return_exceptions=True,
        )
        for limit in limits:
            if limit.grows or limit.function not in awake:
                self._observer.limited(limit.function, limit.experts)
        self.actions["limit"] += len(limits)
        for failure in failures:
            if failure is not None:
                raise failure

    async def _shrink(self, limit: Limit) -> None:
        nbytes = limit.experts * self.footprint.expert_nbytes
        async with _deadline(f"have {limit.function} hold less", LIMIT_SECONDS):
            report = await self.gateway.limit_residency(limit.function, nbytes)
        self._observer.limited(limit.function, limit.experts)
        self._note(limit.function, report)

    def _begin_wake(self, name: str) -> None:
        self._observer.waking(name, time.monotonic())
        self._spawn(self._wake(name))

    async def _wake(self, name: str) -> None:
        await self._scale(name, 1, f"wake {name}", WAKE_SECONDS)
        self.actions["wake"] += 1

    async def _sleep(self, name: str) -> None:
        if await self._scale(name, 0, f"scale {name} to zero", SLEEP_SECONDS):
            self.actions["zero"] += 1
            return
        self._observer.refused_zero(name)
        if not self._refused:
            self._refused = True
            url = self.gateway.of(name).url
            logger.warning("%s does not scale to zero: idle functions drop their weights", url)
        await self._release(name)

    async def _scale(self, name: str, replicas: int, what: str, seconds: float) -> bool:
        """Whether the gateway does it."""
        try:
            async with _deadline(what, seconds):
                return await self.gateway.scale(name, replicas)
        finally:
            self._observer.scaled(name, time.monotonic())

    async def _release(self, name: str) -> None:
        async with _deadline(f"have {name} drop its weights", LIMIT_SECONDS):
            report = await self.gateway.release_residency(name)
        self._observer.released(name)
        self._note(name, report)
        self.actions["release"] += 1

    def _note(self, name: str, report: ResidencyReport) -> None:
        if counted := self.statistics.get(name):
            counted.residency = counted.residency.beside(report)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except GatewayError as error:
            self._fail(error)

    def _fail(self, error: GatewayError) -> None:
        """Say once what is wrong, until it is well again."""
        if not self._away:
            self._away = True
            logger.warning("autoscaling: %s", error)


@asynccontextmanager
async def _deadline(what: str, seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise GatewayError(f"the gateway did not {what} within {seconds:g} s") from error
