"""Runs the autoscaling policy: observes functions and memory, decides, and acts through the gateways."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from control_plane.autoscaling.awake import AwakeCalls, awake_interval
from control_plane.autoscaling.footprint import Footprint, MemoryUse
from control_plane.autoscaling.observer import Observer
from control_plane.autoscaling.policy import (
    Action,
    Limit,
    Observed,
    Release,
    ScalingSettings,
    Sleep,
    Wake,
    decide,
    to_wake,
)
from control_plane.autoscaling.tasks import Tasks
from control_plane.errors import GatewayError
from control_plane.faas.gateways import Gateways
from control_plane.faas.invocation import ResidentLimits
from control_plane.faas.statistics import FunctionStatistics
from functions.contract.messages import ResidencyReport

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 1.0
"""The time between two rounds while requests run."""
RETRY_SECONDS = 5.0
"""The wait after the gateway or a function has failed."""


@dataclass
class Autoscaler:
    """Wakes, limits and puts to sleep a partition's functions.

    It is one task of the event loop, with a further task for each action that may take long. The API calls
    `prompted` for each request that it accepts.
    """

    gateway: Gateways
    statistics: Mapping[str, FunctionStatistics]
    footprint: Footprint
    budget: int | None
    idle_timeout: float
    """A function without calls for this many seconds is scaled to zero."""
    own_bytes: Callable[[], int]
    """Returns the memory that this process uses now, in bytes."""
    requests_running: Callable[[], bool]
    """Returns whether any request is running or queued."""
    limits: ResidentLimits
    """The limits that all later invocations carry."""
    trim_memory: Callable[[], None]
    """Returns this process's unused memory to the system. It may take long, and runs in a thread."""
    awake_invocations: Mapping[str, bytes]
    """The calls that keep the functions awake: see `AwakeCalls`."""
    actions: Counter[str] = field(default_factory=Counter)
    """The number of completed actions of each kind."""
    _observer: Observer = field(init=False)
    _settings: ScalingSettings = field(init=False)
    _limits: dict[str, int] = field(default_factory=dict)
    _prompt: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: Tasks = field(default_factory=Tasks)
    _refused: bool = False
    """Whether the gateway's refusal to scale to zero has been logged."""

    def __post_init__(self) -> None:
        blocks, nbytes = self.footprint.blocks, self.footprint.expert_nbytes
        self._observer = Observer(nbytes, frozenset(blocks))
        self._settings = ScalingSettings(self.budget, self.idle_timeout, nbytes, blocks)
        if self.budget is not None:
            # The least, because the first call may come before the first list of functions.
            self._limits = {name: block.least * nbytes for name, block in blocks.items()}
            self.limits.replace(self._limits)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Autoscale until the context ends."""
        self._tasks.spawn(self._run())
        interval, calling = awake_interval(self.idle_timeout), self._observer.keeping_awake
        calls = AwakeCalls(self.gateway, self.statistics, self.awake_invocations, interval, calling)
        self._tasks.spawn(calls.run())
        try:
            yield
        finally:
            await self._tasks.close()

    def prompted(self) -> None:
        """A request has arrived: wake the functions that it will need. Returns at once."""
        if self._observer.any_asleep:
            for name in to_wake(self._observer.states(self.statistics, time.monotonic())):
                self._begin_wake(name)
        self._prompt.set()

    def memory(self, awake: Collection[str] | None = None) -> MemoryUse:
        """The memory that everything uses, from the functions' last reports.

        `awake` are the functions that take calls; None stands for those of the last list. Those that have
        answered since the last list count in any case.
        """
        names = set(self._observer.awake if awake is None else awake) & self.footprint.blocks.keys()
        names |= self.gateway.unlisted().intersection(self._observer.awake)
        known = self.footprint.blocks.keys() & self.statistics.keys()
        answered = {name: self.statistics[name].last_call for name in known}
        names |= {name for name, at in answered.items() if not self.gateway.has_listed_since(name, at)}
        reports = [self.statistics[name].residency.last for name in names & known]
        return self.footprint.use(self.budget, self.own_bytes(), reports, len(names - known))

    async def _run(self) -> None:
        while True:
            prompted = self._prompt.is_set()
            self._prompt.clear()
            try:
                await self._round(prompted)
                pause = INTERVAL_SECONDS if prompted or self.requests_running() else self._until_idle()
                self._tasks.recovered()
            except GatewayError as error:
                self._tasks.failed(error)
                pause = RETRY_SECONDS
            except Exception:
                # The edge of the task: a fault in one round must not end autoscaling.
                logger.exception("autoscaling failed")
                pause = RETRY_SECONDS
            # Not wait_for, which loses a cancellation that coincides with the event.
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._prompt.wait()

    async def _round(self, prompted: bool) -> None:
        asked = time.monotonic()
        listed = await self.gateway.functions()
        now = time.monotonic()
        self._observer.observe_list(listed, asked, now, self.gateway.unlisted())
        self._observer.observe_statistics(self.statistics, now, time.time())
        if self.requests_running():
            self._observer.keep_woken(now)
        own = max(self.footprint.control_plane, self.own_bytes())
        functions = self._observer.states(self.statistics, now)
        await self._apply(decide(Observed(functions, own, prompted), self._settings))

    def _until_idle(self) -> float | None:
        """Seconds until the next function has been idle for too long; None if no function is awake.

        Less if the last list does not show yet what the last actions have done.
        """
        if not self._observer.is_settled:
            return INTERVAL_SECONDS
        states = self._observer.states(self.statistics, time.monotonic()).values()
        waits = [
            self.idle_timeout - state.idle_seconds
            for state in states
            if state.replicas and not state.released
        ]
        return None if not waits else min(waits) if min(waits) > 0 else RETRY_SECONDS

    async def _apply(self, actions: list[Action]) -> None:
        """Take the actions. Those that may take long become tasks, which run on during the next rounds."""
        for action in actions:
            match action:
                case Wake(name):
                    self._begin_wake(name)
                case Sleep(name):
                    # Before the task runs: this function must not be limited any more.
                    self._observer.going_to_zero(name)
                    self._tasks.spawn(self._sleep(name))
                case Release(name):
                    self._tasks.spawn(self._release(name))
        if any(isinstance(action, Sleep | Release) for action in actions):
            self._tasks.spawn(asyncio.to_thread(self.trim_memory))
        limits = [action for action in actions if isinstance(action, Limit)]
        # Functions grow only after others have shrunk, so that the budget holds at any time.
        await self._limit([limit for limit in limits if not limit.grows])
        await self._limit([limit for limit in limits if limit.grows])

    async def _limit(self, limits: list[Limit]) -> None:
        """Send the limits with later invocations; functions that are to shrink also get theirs at once."""
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
        report = await self.gateway.limit_residency(limit.function, nbytes)
        self._observer.limited(limit.function, limit.experts)
        self._observe_report(limit.function, report)

    def _begin_wake(self, name: str) -> None:
        self._observer.waking(name, time.monotonic())
        self._tasks.spawn(self._wake(name))

    async def _wake(self, name: str) -> None:
        try:
            await self.gateway.scale(name, 1)
        finally:
            self._observer.scaled(name, time.monotonic())
        self.actions["wake"] += 1

    async def _sleep(self, name: str) -> None:
        try:
            accepted = await self.gateway.scale(name, 0)
        finally:
            self._observer.scaled(name, time.monotonic())
        if accepted:
            self._observer.accepted_zero(name, time.monotonic())
            self.actions["zero"] += 1
        else:
            self._observer.refused_zero(name)
            await self._release(name)

    async def _release(self, name: str) -> None:
        """Have a function that cannot be scaled to zero drop its weights."""
        if not self._refused:
            self._refused = True
            url = self.gateway.of(name).url
            logger.warning("%s does not scale to zero: idle functions drop their weights", url)
        report = await self.gateway.release_residency(name)
        self._observer.released(name)
        self._observe_report(name, report)
        self.actions["release"] += 1

    def _observe_report(self, name: str, report: ResidencyReport) -> None:
        if counted := self.statistics.get(name):
            counted.residency.observe(report)
