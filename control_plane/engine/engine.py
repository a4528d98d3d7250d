"""The engine: a thread that computes steps, and the interface to it for the event loop.

The event loop submits sequences and iterates over their tokens. The two threads meet in a queue of commands
one way and in `call_soon_threadsafe` the other way. Besides those they share only the interruption, and the
status, which the engine's thread replaces as a whole.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from control_plane.engine.core import EngineCore, EngineStatus
from control_plane.engine.model.runner import ModelRunner
from control_plane.engine.scheduling.scheduler import Scheduler
from control_plane.engine.state.sequence import Sequence
from control_plane.engine.stream import TokenStream
from control_plane.errors import ContextLengthExceeded, EngineError, ShuttingDown
from control_plane.faas.invocation import ExpertInvoker

logger = logging.getLogger(__name__)

Command = Callable[[], None]


class Engine:
    """Owns the engine's thread. All public methods belong to the event loop.

    The thread runs from `start` until `stop`, or until it fails. However it ends, every stream that has not
    ended by then raises `ShuttingDown`, and so does `submit` from then on.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: ModelRunner,
        invoker: ExpertInvoker,
        context_length: int,
        eos_ids: frozenset[int],
    ) -> None:
        self.context_length = context_length
        self.eos_ids = eos_ids
        self._kv_cache = scheduler.kv_cache
        self._invoker = invoker
        self._interruption = runner.interruption
        self._stopping = threading.Event()
        self._core = EngineCore(scheduler, runner, invoker, eos_ids, self._stopping)
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def max_length(self) -> int:
        """Tokens of the longest sequence that fits both the model's context and the KV cache."""
        return min(self.context_length, self._kv_cache.max_length)

    @property
    def alive(self) -> bool:
        """Whether the thread is running."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    async def stop(self) -> None:
        """End the thread; sequences that are still running fail. Raises nothing."""
        self._stopping.set()
        self._wake()
        # The thread may be waiting for functions.
        self._invoker.abort()
        await asyncio.to_thread(self._thread.join)
        self._invoker.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The thread runs until the context ends."""
        self.start()
        try:
            yield
        finally:
            await self.stop()

    def submit(self, sequences: list[Sequence]) -> TokenStream:
        """Queue a request's sequences, and return the stream of their tokens.

        Raises what `check` raises for any of them, and then computes none.
        """
        for sequence in sequences:
            self.check(sequence)
        stream = TokenStream(sequences, asyncio.get_running_loop())
        self._commands.put(lambda: self._core.add(stream))
        # The thread may have failed since `check`, and have run its last command before this one.
        if self._stopping.is_set():
            raise ShuttingDown
        if not sequences[0].background:
            self._interruption.request(sequences[0].tenant)
        return stream

    def check(self, sequence: Sequence) -> None:
        """Raise an `EngineError` if the sequence could never run.

        `ContextLengthExceeded` or `OutOfCache` if it is too long, `ShuttingDown` once the engine stops.
        """
        if self._stopping.is_set():
            raise ShuttingDown
        if not sequence.num_prompt_tokens:
            raise EngineError("the prompt is empty")
        if sequence.max_length > self.context_length:
            raise ContextLengthExceeded(
                f"the model's context is {self.context_length} tokens: {sequence.num_prompt_tokens} of the "
                f"prompt and {sequence.params.max_tokens} to generate are {sequence.max_length}"
            )
        self._kv_cache.check_fits(sequence)

    def cancel(self, sequences: list[Sequence]) -> None:
        """End sequences before their next step. Sequences that have ended are skipped."""
        self._commands.put(lambda: self._core.cancel(sequences))

    def status(self) -> EngineStatus:
        """The engine's load as of the current step."""
        return self._core.status

    def _wake(self) -> None:
        """Have the thread look whether it is to stop, should it be waiting for a command."""
        self._commands.put(lambda: None)

    # The methods below run on the engine's thread.

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._obey(wait=not self._core.has_work)
                self._core.step()
        except Exception:
            # The edge of the thread: without it, streams would wait for ever for a thread that is gone.
            logger.exception("the engine has stopped")
            self._stopping.set()
        # Requests that were submitted before the end, but not queued yet, have a listener as well.
        self._obey(wait=False)
        self._core.fail_all(ShuttingDown())

    def _obey(self, wait: bool) -> None:
        """Run all commands that have arrived; with `wait`, wait for the first one."""
        try:
            while True:
                self._commands.get(block=wait)()
                wait = False
        except queue.Empty:
            return
