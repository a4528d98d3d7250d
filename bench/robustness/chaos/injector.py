"""Injects faults one after the other, waits for recovery after each, and counts what the clients noticed."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import psutil

from bench.robustness.chaos.faults import Fault
from bench.robustness.chaos.results import FaultResult
from bench.robustness.chaos.streams import Stall, Streams
from bench.robustness.stack import Stack, last_lines, settled
from control_plane.errors import FaaSMoEError

QUIET_SECONDS = 6.0
"""Time without a fault before the first one and after each one."""
STEADY_SECONDS = 3.0
"""How long streams must flow, with right tokens, before they count as recovered."""
RECOVERY_SECONDS = 90.0
"""Streams that do not flow this long after a fault has ended never will: everything is started anew."""
LEAST_STALL = 1.0
"""The shortest pause between tokens, in seconds, that can count as a stall."""
POLL_SECONDS = 0.1
LOG_LINES = 3
CALM = "no fault"
"""The name of the times without a fault."""


@dataclass
class Injector:
    """Injects faults into a stack under load."""

    stack: Stack
    streams: Streams
    numbers: random.Random
    log: Callable[[str], None]
    results: dict[str, FaultResult] = field(default_factory=dict)
    _last: float = field(default_factory=time.perf_counter)
    """The end of the time that was counted last."""

    async def run(self, faults: Sequence[Fault], seconds: float) -> None:
        """Inject each fault once, in random order, and so on again until the time is over."""
        calm = FaultResult(CALM, times=1)
        end = time.monotonic() + seconds
        await asyncio.sleep(QUIET_SECONDS)
        self._count(calm)
        for fault in self.numbers.sample(faults, len(faults)):
            await self._inject(fault)
        while time.monotonic() < end:
            for fault in self.numbers.sample(faults, len(faults)):
                if time.monotonic() < end:
                    await self._inject(fault)
        self.results[CALM] = calm

    def finish(self) -> None:
        """Count what has happened since the last fault."""
        self._count(self.results[CALM])

    async def _inject(self, fault: Fault) -> None:
        """Inject a fault once, wait until the streams have recovered, and count."""
        result = self.results.setdefault(fault.name, FaultResult(fault.name, fault.aim))
        limit = max(LEAST_STALL, 2 * longest(self._stalls(time.perf_counter() - QUIET_SECONDS)))
        before = len(await asyncio.to_thread(self.stack.processes))
        began = time.perf_counter()
        result.times += 1
        try:
            async with fault.inject(self.stack, self.numbers):
                await asyncio.sleep(fault.hold)
            failure = "" if await self._recovers(limit) else f"no recovery within {RECOVERY_SECONDS:.0f} s"
        except (FaaSMoEError, OSError, psutil.Error) as error:
            failure = f"it could not be injected or ended: {error}"
        if failure:
            result.failures.append(failure)
            await self._start_anew(limit)
        else:
            await asyncio.sleep(QUIET_SECONDS)
            result.recovery = max(result.recovery, self._recovery(began, limit))
            result.processes_left += await settled(lambda: len(self.stack.processes()) - before)
        self._count(result)
        self.log(f"{fault.name}: {failure or 'over'} after {time.perf_counter() - began:.1f} s")

    async def _start_anew(self, limit: float) -> None:
        """Show what the logs say, and start everything anew, so that other faults can be measured."""
        for line in last_lines(self.stack.folder, LOG_LINES):
            self.log(line)
        await self.stack.restart()
        await self._recovers(limit)
        await asyncio.sleep(QUIET_SECONDS)

    async def _recovers(self, limit: float) -> bool:
        """Wait until all streams flow as before. Returns False if they do not in time."""
        deadline = time.monotonic() + RECOVERY_SECONDS
        flowing_since = time.perf_counter()
        while time.monotonic() < deadline:
            await asyncio.sleep(POLL_SECONDS)
            now = time.perf_counter()
            if longest(self._stalls(now)) > limit:
                flowing_since = now
            if now - max(flowing_since, self.streams.failed_at) > STEADY_SECONDS:
                return True
        return False

    def _recovery(self, began: float, limit: float) -> float:
        """Seconds from the injection to the end of the last stall, or to the last failure."""
        ends = [stall.ended for stall in self._stalls(began) if stall.seconds > limit]
        return max([began, self.streams.failed_at, *ends]) - began

    def _stalls(self, since: float) -> list[Stall]:
        return [stall for flow in self.streams.flows for stall in flow.stalls_since(since)]

    def _count(self, result: FaultResult) -> None:
        """Count what has happened since the last time that was counted as belonging to `result`."""
        now = time.perf_counter()
        attempts = [each for each in self.streams.attempts if self._last < each.ended <= now]
        result.add(attempts, self._stalls(self._last))
        self._last = now


def longest(stalls: Sequence[Stall]) -> float:
    """Seconds of the longest stall; 0 if there is none."""
    return max((stall.seconds for stall in stalls), default=0.0)
