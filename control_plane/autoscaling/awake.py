"""Keeps functions awake at their gateways, which do not see the calls that go straight to functions.

A gateway would take a busy function for an idle one, and stop it. So each function that is in use is also
called through its gateway now and then, with an invocation without rows. No step waits for these calls.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from control_plane.errors import GatewayError
from control_plane.faas.gateways import Gateways
from control_plane.faas.statistics import FunctionStatistics
from control_plane.partition.manifest import Manifest
from functions.contract.messages import Invocation

logger = logging.getLogger(__name__)

MOST_SECONDS = 10.0
CALL_SECONDS = 5.0
_ACTIVATION_DTYPE = {"f32": np.float32, "bf16": np.uint16}


def awake_interval(idle_timeout: float) -> float:
    """Seconds between the calls that keep a function awake, if it is idle after `idle_timeout` seconds."""
    return min(MOST_SECONDS, idle_timeout / 3)


def awake_invocations(manifest: Manifest) -> dict[str, bytes]:
    """The body of a call without rows, for each function."""
    rows = np.empty((0, manifest.hidden_size), _ACTIVATION_DTYPE[manifest.dtype])
    nothing = rows, np.empty((0, 0), np.int16), np.empty((0, 0), np.float32)
    return {
        block.function: b"".join(Invocation(min(block.experts), manifest.fingerprint, *nothing).encode())
        for block in manifest.blocks
    }


@dataclass
class AwakeCalls:
    """Calls every function that was invoked since its last such call."""

    gateways: Gateways
    statistics: Mapping[str, FunctionStatistics]
    invocations: Mapping[str, bytes]
    interval: float
    """Seconds between two rounds of calls."""
    calling: Callable[[str, float], bool]
    """Told the function and the time before each call; returns whether the function may be called."""
    _last_calls: dict[str, float] = field(default_factory=dict)
    """The `last_call` of each function at its last call from here."""

    async def run(self) -> None:
        """Call functions until cancelled."""
        while True:
            await asyncio.sleep(self.interval)
            try:
                await asyncio.gather(*map(self._call, self.due()))
            except Exception:
                # The edge of the task: no error of one round may end it.
                logger.exception("keeping functions awake failed")

    def due(self) -> list[str]:
        """The functions to call now, which are then not due until their next invocation."""
        due = []
        for name in self.invocations:
            last_call = self.statistics[name].last_call if name in self.statistics else 0.0
            if last_call != self._last_calls.get(name, 0.0) and self.calling(name, time.monotonic()):
                self._last_calls[name] = last_call
                due.append(name)
        return due

    async def _call(self, name: str) -> None:
        # A gateway that hangs must not delay the next round of calls to others for long.
        seconds = min(CALL_SECONDS, self.interval)
        try:
            await self.gateways.keep_awake(name, self.invocations[name], seconds)
        except GatewayError as error:
            logger.debug("keeping %s awake: %s", name, error)
