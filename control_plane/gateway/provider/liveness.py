"""Tells a process that hangs from one that is busy, or that gets too little of the machine."""

import asyncio
import os
import random
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from control_plane.gateway.provider.health_probe import HealthProbe

_SECONDS_PER_TICK = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class LivenessLimits:
    """When a process counts as hanging. Durations are in seconds.

    A process hangs when `failures` probes in a row have failed while it had nothing to compute and nothing to
    read from disk, or when it has answered nothing for `busy`.
    """

    interval: float = 1.0
    idle_interval: float = 4.0
    """How much later than that a process is probed that is not called: there may be hundreds of them."""
    deadline: float = 0.5
    failures: int = 2
    busy: float = 30.0


DEFAULT_LIMITS = LivenessLimits()


@dataclass(frozen=True)
class Activity:
    """What a process does: the processor time that it has used, and whether a thread computes or reads."""

    seconds: float
    working: bool

    @classmethod
    def read(cls, pid: int) -> "Activity":
        """Look at a process and its threads; one that has ended does nothing."""
        seconds, working = 0.0, False
        with suppress(OSError):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                with suppress(OSError):
                    # The name comes first, in parentheses, and may contain spaces and parentheses.
                    fields = (thread / "stat").read_text().rpartition(")")[2].split()
                    # R: runs or waits for a processor. D: waits for a disk.
                    working = working or fields[0] in "RD"
                    seconds += (int(fields[11]) + int(fields[12])) * _SECONDS_PER_TICK
        return cls(seconds, working)


class Liveness:
    """Judges one process by the results of its probes. All times are the caller's clock's, in seconds."""

    def __init__(self, limits: LivenessLimits, now: float) -> None:
        self._limits = limits
        self._answered_at = now
        self._seconds: float | None = None
        self.failures = 0
        """Probes in a row that have failed although the process had nothing to do."""

    def answered(self, now: float) -> None:
        """A probe was answered."""
        self._answered_at = now
        self._seconds = None
        self.failures = 0

    def failed(self, activity: Activity) -> None:
        """A probe was not answered in time; `activity` is what the process did then."""
        used = self._seconds is not None and activity.seconds > self._seconds
        self._seconds = activity.seconds
        self.failures = 0 if activity.working or used else self.failures + 1

    def hangs(self, now: float) -> bool:
        return self.failures >= self._limits.failures or now - self._answered_at >= self._limits.busy


async def until_it_hangs(
    pid: int, port: int, called: asyncio.Event, limits: LivenessLimits = DEFAULT_LIMITS
) -> None:
    """Probe a process again and again; returns when it hangs. To be cancelled when it has ended.

    `called` is set while calls are in flight: one that is not called has more time between probes.
    """
    loop = asyncio.get_running_loop()
    liveness = Liveness(limits, loop.time())
    with HealthProbe(port) as probe:
        while not liveness.hangs(loop.time()):
            # The second probe of a process that seems to hang comes at once.
            if not liveness.failures:
                await _pause(called, limits)
            try:
                if await probe.ask(limits.deadline):
                    liveness.answered(loop.time())
                    continue
                activity = Activity.read(pid)
                # Only now: what was idle at that look and has sent nothing since then does not answer.
                if probe.has_arrived():
                    liveness.answered(loop.time())
                else:
                    liveness.failed(activity)
                probe.hang_up()
            except OSError:
                # A process that hangs closes no connection and refuses none: this one is about to end.
                liveness.failed(Activity(0.0, working=True))


async def _pause(called: asyncio.Event, limits: LivenessLimits) -> None:
    """Wait until the next probe. Those of all processes are spread in time."""
    jitter = random.SystemRandom().uniform(0.8, 1.0)
    with suppress(TimeoutError):
        async with asyncio.timeout(limits.idle_interval * jitter):
            await called.wait()
    await asyncio.sleep(limits.interval * jitter)
