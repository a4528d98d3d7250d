"""One deployed function: it has a process while it is in use, and none while it is scaled to zero."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from control_plane.errors import FunctionNotFound, FunctionUnavailable
from control_plane.faas.types import FunctionDeployment, FunctionStatus
from control_plane.gateway.provider.log import FunctionLog
from control_plane.gateway.provider.process import FunctionProcess
from control_plane.gateway.provider.scaling_labels import ScalingLabels
from control_plane.gateway.provider.starter import FunctionStarter

_COOL_DOWN_S = 5.0
SHORT_LIFE_S = 10.0
"""A process that dies sooner after it was ready has probably the same fault as the one before it."""
_TOLERATED_DEATHS = 2

_logger = logging.getLogger(__name__)


class FunctionKeepsDying(FunctionUnavailable):
    """The last processes of a function died: another one is not started before `retry_after` seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True)
class _Failure:
    """The last processes died: until `retry_at` (the loop's time), calls fail at once with `message`."""

    message: str
    retry_at: float


def pause_after_deaths(deaths: int) -> float:
    """Seconds to wait before another start, after so many processes in a row that lived for a short time."""
    further = deaths - _TOLERATED_DEATHS
    return min(2.0 ** (further - 1), _COOL_DOWN_S) if further > 0 else 0.0


class LocalFunction:
    """Scales one function between zero and one process.

    When a process is released, to scale to zero or because the specification changed, it finishes its calls
    in flight and exits in the background. Calls that arrive in the meantime start another process.
    """

    def __init__(
        self,
        deployment: FunctionDeployment,
        scaling: ScalingLabels,
        starter: FunctionStarter,
        replicas: int | None = None,
    ) -> None:
        """Begin to start a process if `replicas` is 1; None means as many as `scaling` asks for."""
        self.log = FunctionLog(deployment.service)
        self.replicas = 0
        self._deployment = deployment
        self._scaling = scaling
        self._starter = starter
        self._created_at = datetime.now(UTC)
        self._invocations = 0
        self._spawned: FunctionProcess | None = None
        self._process: FunctionProcess | None = None
        self._starting: asyncio.Task[None] | None = None
        self._watches: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._idle_timer: asyncio.TimerHandle | None = None
        self._failure: _Failure | None = None
        self._deaths = 0
        """Processes in a row that died soon after they were ready."""
        self._closed = False
        self.scale(scaling.min_replicas if replicas is None else replicas)

    @property
    def process(self) -> FunctionProcess | None:
        """The process that accepts calls at the moment, if there is one."""
        return self._process if self._process and self._process.alive else None

    @property
    def spawned(self) -> FunctionProcess | None:
        """The newest process, also one that is not ready yet, if it is alive."""
        return self._spawned if self._spawned and self._spawned.alive else None

    def wanted(self) -> FunctionStatus:
        """The specification, and the wanted number of replicas."""
        return FunctionStatus(self._deployment, self.replicas)

    def status(self) -> FunctionStatus:
        process = self.process
        return FunctionStatus(
            deployment=self._deployment,
            replicas=self.replicas,
            available_replicas=0 if process is None else 1,
            invocation_count=self._invocations,
            created_at=self._created_at,
            usage=None if process is None else process.usage(),
        )

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[FunctionProcess]:
        """A ready process for one call: started if there is none, and not stopped before the context ends.

        Raises FunctionUnavailable if no process can be started, FunctionNotFound if the function is removed
        while the call waits.
        """
        process = await self._wait_for_process()
        self._invocations += 1
        with process.call():
            yield process

    def scale(self, replicas: int) -> None:
        """Begin to start a process (1), or release the one there is (0)."""
        self.replicas = replicas
        self._failure = None
        if not replicas:
            self._release()
        elif self.process is None:
            self._start()

    def wake(self) -> None:
        """Begin to start a process if there is none. Raises what a call that waits for it would raise."""
        if self.process is None:
            self._check_may_start()
            self._start()

    def update(self, deployment: FunctionDeployment, scaling: ScalingLabels) -> None:
        """Change the specification; a process that was started by another one is replaced."""
        if deployment != self._deployment:
            self._deployment = deployment
            self._scaling = scaling
            self.scale(0)
        if scaling.min_replicas:
            self.scale(scaling.min_replicas)

    async def ended(self) -> None:
        """Wait until all released processes have exited."""
        if self._ending:
            await asyncio.wait(set(self._ending))

    async def close(self) -> None:
        """Refuse further calls, finish those in flight, and end the process."""
        self._closed = True
        self.log.close()
        self.scale(0)
        await self.ended()

    async def _wait_for_process(self) -> FunctionProcess:
        while (process := self.process) is None:
            self._check_may_start()
            starting = self._start()
            # Not awaited directly: scaling or an update cancels the start, but must not cancel the call.
            await asyncio.wait({starting})
            if not starting.cancelled():
                starting.result()
        return process

    def _check_may_start(self) -> None:
        if self._closed:
            raise FunctionNotFound(f"function {self._deployment.service} was removed")
        if self._failure is None:
            return
        pause = self._failure.retry_at - asyncio.get_running_loop().time()
        if pause > 0:
            raise FunctionKeepsDying(self._failure.message, pause)

    def _start(self) -> asyncio.Task[None]:
        self.replicas = 1
        if self._starting is None or self._starting.done():
            self._stop_idle_timer()
            self._starting = asyncio.create_task(self._run_start())
        return self._starting

    async def _run_start(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            process = await self._starter.start(self._deployment, self.log, self._note_spawned)
        except FunctionUnavailable as error:
            _logger.warning("%s", error)
            self._failure = _Failure(str(error), loop.time() + _COOL_DOWN_S)
            return
        _logger.debug("%s is ready after %.2f s", self._deployment.service, loop.time() - began)
        self._process = process
        watch = asyncio.create_task(self._look_after(process))
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)
        self._sleep_if_idle()

    def _note_spawned(self, process: FunctionProcess) -> None:
        self._spawned = process

    async def _look_after(self, process: FunctionProcess) -> None:
        """Wait for the end of a process. If nobody asked for it, note it, and replace one that hung."""
        loop = asyncio.get_running_loop()
        ready_at = loop.time()
        await process.wait_ended()
        if process is not self._process:
            return
        self._deaths = self._deaths + 1 if loop.time() - ready_at < SHORT_LIFE_S else 1
        if pause := pause_after_deaths(self._deaths):
            message = (
                f"function {self._deployment.service} keeps dying: {self._deaths} times in a row within "
                f"{SHORT_LIFE_S:g} s of its start, {process.last_words}"
            )
            _logger.warning("%s", message)
            self._failure = _Failure(message, loop.time() + pause)
        elif process.hangs and self.replicas:
            self._start()

    def _release(self) -> None:
        self._stop_idle_timer()
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            self._await_end(self._starting)
        if self._process is not None:
            self._await_end(asyncio.create_task(self._starter.end(self._process)))
        self._starting = self._process = None

    def _await_end(self, task: asyncio.Task[None]) -> None:
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _sleep_if_idle(self) -> None:
        process, idle_after = self._process, self._scaling.idle_after
        if process is None or idle_after is None:
            return
        loop = asyncio.get_running_loop()
        idle = 0.0 if process.calls else loop.time() - process.last_used
        if idle >= idle_after:
            _logger.debug("%s sleeps after %.0f s without a call", self._deployment.service, idle)
            self.scale(0)
        else:
            self._idle_timer = loop.call_later(idle_after - idle, self._sleep_if_idle)

    def _stop_idle_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
