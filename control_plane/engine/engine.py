"""The engine: a thread that runs the model, one step at a time, and streams what comes out of it.

The asyncio side submits sequences and iterates over their tokens. The two sides meet in a queue of
commands one way and `call_soon_threadsafe` the other way, and share nothing else.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from control_plane.engine.model_runner import ModelRunner
from control_plane.engine.sampler import Sampler
from control_plane.engine.scheduler import Chunk, Scheduler
from control_plane.engine.sequence import Sequence
from control_plane.errors import ContextLengthExceeded, EngineError, FaaSMoEError
from control_plane.faas.invocation import ExpertInvoker

logger = logging.getLogger(__name__)

Command = Callable[[], None]


@dataclass(frozen=True)
class EngineStatus:
    """How much the engine has to do."""

    running: int
    waiting: int
    kv_cache_used: float
    """Share of the KV cache's pages that sequences hold, 0 to 1."""


@dataclass(eq=False)
class TokenStream:
    """The tokens of one sequence as they are generated; raises the error that ended it, if one did."""

    sequence: Sequence
    _loop: asyncio.AbstractEventLoop
    _events: asyncio.Queue[int | FaaSMoEError | None] = field(default_factory=asyncio.Queue)

    def put(self, event: int | FaaSMoEError | None) -> None:
        """From the engine's thread: a token, an error, or None at the end."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:
            logger.debug("%s: the listener's event loop is gone", self.sequence.request_id)

    async def __aiter__(self) -> AsyncIterator[int]:
        while (event := await self._events.get()) is not None:
            if isinstance(event, FaaSMoEError):
                raise event
            yield event


class Engine:
    """Owns the engine thread. `start`, `submit`, `cancel`, `status` and `stop` belong to the asyncio side."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: ModelRunner,
        invoker: ExpertInvoker,
        context_length: int,
        eos_ids: frozenset[int],
    ) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._invoker = invoker
        self._sampler = Sampler()
        self.context_length = context_length
        self._eos_ids = eos_ids
        self._streams: dict[Sequence, TokenStream] = {}
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def max_length(self) -> int:
        """The longest sequence that can run: what both the context and the KV cache hold."""
        return min(self.context_length, self._scheduler.kv_cache.num_tokens)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, sequence: Sequence) -> TokenStream:
        """Queue a sequence and return its tokens as they come.

        Raises `ContextLengthExceeded` or `OutOfCache` for a sequence that could never run.
        """
        self._check(sequence)
        stream = TokenStream(sequence, asyncio.get_running_loop())
        self._commands.put(lambda: self._add(stream))
        return stream

    def cancel(self, sequence: Sequence) -> None:
        """End a sequence and its stream before its next step; harmless for one that has ended."""
        self._commands.put(lambda: self._end(sequence, None))

    def status(self) -> EngineStatus:
        """A snapshot."""
        cache = self._scheduler.kv_cache
        used = 1 - cache.num_free_pages / cache.num_pages
        return EngineStatus(len(self._scheduler.running), len(self._scheduler.waiting), used)

    async def stop(self) -> None:
        """End the thread, and what is still running with an error; raises nothing."""
        self._stopping = True
        self._commands.put(lambda: None)
        self._invoker.abort()
        await asyncio.to_thread(self._thread.join)
        self._invoker.close()

    def _check(self, sequence: Sequence) -> None:
        if self._stopping:
            raise EngineError("the server is shutting down")
        if not sequence.num_prompt_tokens:
            raise EngineError("the prompt is empty")
        if sequence.max_length > self.context_length:
            raise ContextLengthExceeded(
                f"the model's context is {self.context_length} tokens: {sequence.num_prompt_tokens} of the "
                f"prompt and {sequence.params.max_tokens} to generate are {sequence.max_length}"
            )
        self._scheduler.kv_cache.check_fits(sequence)

    # What follows runs on the engine's thread.

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._obey(wait=not self._streams)
                if batch := self._scheduler.schedule():
                    self._step(batch)
        except Exception:
            # The edge of the thread: nobody may wait for what will never come.
            logger.exception("the engine has stopped")
            self._stopping = True
        # Sequences that were submitted before the end, but not seen yet, have a listener too.
        self._obey(wait=False)
        for sequence in list(self._streams):
            self._end(sequence, EngineError("the server is shutting down"))

    def _obey(self, wait: bool) -> None:
        """Carry out the commands that have come, waiting for one when there is nothing else to do."""
        try:
            while True:
                self._commands.get(block=wait)()
                wait = False
        except queue.Empty:
            return

    def _step(self, batch: list[Chunk]) -> None:
        """Compute, sample, commit, emit. A step that fails has changed nothing but ends its sequences."""
        sampled = [chunk.sequence for chunk in batch if chunk.is_last]
        before = self._invoker.usage
        try:
            logits = self._runner.run(batch)
            tokens = self._sampler.sample(logits, sampled) if sampled else []
        except FaaSMoEError as error:
            # While stopping, the failure is our own hanging up: `_run` tells the streams why.
            if not self._stopping:
                self._fail(batch, error)
            return
        except Exception:
            # The edge of the thread: whatever one batch does, the next one is served.
            logger.exception("a step failed")
            self._fail(batch, EngineError("internal error"))
            return
        self._scheduler.commit(batch)
        for chunk in batch:
            chunk.sequence.usage += self._invoker.usage - before
        for sequence, token in zip(sampled, tokens, strict=True):
            sequence.append(token, self._eos_ids)
            self._streams[sequence].put(token)
            if sequence.finish_reason:
                self._end(sequence, None)

    def _fail(self, batch: list[Chunk], error: FaaSMoEError) -> None:
        for chunk in batch:
            self._end(chunk.sequence, error)

    def _add(self, stream: TokenStream) -> None:
        self._streams[stream.sequence] = stream
        self._scheduler.add(stream.sequence)

    def _end(self, sequence: Sequence, event: FaaSMoEError | None) -> None:
        self._scheduler.remove(sequence)
        self._sampler.forget(sequence)
        if stream := self._streams.pop(sequence, None):
            stream.put(event)
