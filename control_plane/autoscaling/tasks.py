"""Work that runs beside the autoscaler's rounds."""

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass, field

from control_plane.errors import GatewayError

logger = logging.getLogger(__name__)


@dataclass
class Tasks:
    """Runs work in tasks of the event loop, and logs the first of successive failures of gateways."""

    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _failing: bool = False

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Run the work until it ends or `close` cancels it. It may raise `GatewayError`."""
        task = asyncio.create_task(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Cancel all work, and wait for its end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def failed(self, error: GatewayError) -> None:
        """Log the failure, unless one has been logged since the last call of `recovered`."""
        if not self._failing:
            self._failing = True
            logger.warning("autoscaling: %s", error)

    def recovered(self) -> None:
        """The gateways answer."""
        self._failing = False

    async def _guarded(self, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except GatewayError as error:
            self.failed(error)
