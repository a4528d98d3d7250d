"""The engine: a thread that runs the model, one step at a time, and streams what comes out of it.

The asyncio side submits sequences and iterates over their tokens. The two sides meet in a queue of
commands one way and `call_soon_threadsafe` the other way, and share nothing else.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from control_plane.engine.model.runner import ModelRunner
from control_plane.engine.model.sampler import Sampler
from control_plane.engine.scheduling.interruption import Interrupted
from control_plane.engine.scheduling.scheduler import Chunk, Scheduler
from control_plane.engine.sequence import FinishReason, Generated, Sequence
from control_plane.engine.step import Step, StepResult
from control_plane.engine.stopwatch import StepPart
from control_plane.engine.stream import Outbox, TokenStream
from control_plane.errors import ContextLengthExceeded, EngineError, FaaSMoEError, ShuttingDown
from control_plane.faas.invocation import ExpertInvoker, ExpertUsage

logger = logging.getLogger(__name__)

Command = Callable[[], None]


@dataclass(frozen=True)
class EngineStatus:
    """How much the engine has to do."""

    running: int
    """Sequences that have memory."""
    waiting: int
    kv_cache_used: float
    """Share of the KV cache's pages that sequences hold, 0 to 1."""
    preemptions: int
    """How often a sequence had to give its memory up, since the start."""
    steps: int
    """That came to their end, since the start."""
    step_seconds: Mapping[StepPart, float]
    """What steps took, and the time between them while there was something to do."""


@dataclass(frozen=True)
class _Place:
    """Where a sequence's tokens go."""

    stream: TokenStream
    number: int


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
        self._invoker = invoker
        self._sampler = Sampler()
        self._interruption = runner.interruption
        self._stopwatch = runner.stopwatch
        self._model = Step(runner, self._sampler)
        self.context_length = context_length
        self._eos_ids = eos_ids
        self._places: dict[Sequence, _Place] = {}
        self._outbox = Outbox()
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def max_length(self) -> int:
        """The longest sequence that can run: what both the context and the KV cache hold."""
        return min(self.context_length, self._scheduler.kv_cache.max_length)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, sequences: list[Sequence]) -> TokenStream:
        """Queue a request's sequences and return their tokens as they come.

        Raises `ContextLengthExceeded` or `OutOfCache` if one could never run, and then queues none.
        """
        for sequence in sequences:
            self.check(sequence)
        stream = TokenStream(sequences, asyncio.get_running_loop())
        self._commands.put(lambda: self._add(stream))
        self._interruption.ask(sequences[0].tenant)
        return stream

    def check(self, sequence: Sequence) -> None:
        """Raises `ContextLengthExceeded` or `OutOfCache` for a sequence that could never run."""
        if self._stopping:
            raise ShuttingDown
        if not sequence.num_prompt_tokens:
            raise EngineError("the prompt is empty")
        if sequence.max_length > self.context_length:
            raise ContextLengthExceeded(
                f"the model's context is {self.context_length} tokens: {sequence.num_prompt_tokens} of the "
                f"prompt and {sequence.params.max_tokens} to generate are {sequence.max_length}"
            )
        self._scheduler.kv_cache.check_fits(sequence)

    def cancel(self, sequences: list[Sequence]) -> None:
        """End sequences before their next step; harmless for those that have ended."""
        self._commands.put(lambda: self._end_all(sequences))

    def status(self) -> EngineStatus:
        """A snapshot."""
        scheduler = self._scheduler
        pages = scheduler.kv_cache.pages
        used = 1 - pages.num_free_pages / pages.num_pages
        return EngineStatus(
            scheduler.num_running,
            scheduler.num_waiting,
            used,
            scheduler.num_preemptions,
            self._stopwatch.steps,
            self._stopwatch.seconds,
        )

    async def stop(self) -> None:
        """End the thread, and what is still running with an error; raises nothing."""
        self._stopping = True
        self._commands.put(lambda: None)
        self._invoker.abort()
        await asyncio.to_thread(self._thread.join)
        self._invoker.close()

    # What follows runs on the engine's thread.

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._obey(wait=not self._places)
                self._stopwatch.start()
                if batch := self._scheduler.schedule():
                    self._step(batch)
                self._outbox.flush()
                self._stopwatch.lap(StepPart.SCHEDULE)
        except Exception:
            # The edge of the thread: nobody may wait for what will never come.
            logger.exception("the engine has stopped")
            self._stopping = True
        # Sequences that were submitted before the end, but not seen yet, have a listener too.
        self._obey(wait=False)
        for sequence in list(self._places):
            self._fail(sequence, ShuttingDown())
        self._outbox.flush()

    def _obey(self, wait: bool) -> None:
        """Carry out the commands that have come, waiting for one when there is nothing else to do."""
        try:
            while True:
                self._commands.get(block=wait)()
                wait = False
        except queue.Empty:
            return

    def _step(self, batch: list[Chunk]) -> None:
        """Compute, commit, tell. A step that fails has changed nothing but ends its sequences."""
        before, now = self._invoker.usage, time.monotonic()
        for chunk in batch:
            chunk.sequence.started = chunk.sequence.started or now
        self._interruption.begin(self._interruptible(batch))
        try:
            results = self._model.run(batch)
        except Interrupted:
            return
        except FaaSMoEError as error:
            # While stopping, the failure is our own hanging up: `_run` tells the streams why.
            if not self._stopping:
                self._fail_all(batch, error)
            return
        except Exception:
            # The edge of the thread: whatever one batch does, the next one is served.
            logger.exception("a step failed")
            self._fail_all(batch, EngineError("internal error"))
            return
        finally:
            self._book(batch, self._invoker.usage - before)
        self._interruption.end()
        self._stopwatch.steps += 1
        self._scheduler.commit(batch)
        for result in results:
            self._tell(result)

    def _book(self, batch: list[Chunk], cost: ExpertUsage) -> None:
        """Each row has the same number of experts, so rows are what a step's cost is shared by."""
        rows = sum(chunk.length for chunk in batch)
        for chunk in batch:
            chunk.sequence.usage += cost.share(chunk.length / rows)

    def _interruptible(self, batch: list[Chunk]) -> frozenset[str]:
        """Whose batch it is, if a newcomer's turn would be before theirs."""
        fair = self._scheduler.fair
        return frozenset(chunk.sequence.tenant for chunk in batch) if fair else frozenset()

    def _tell(self, result: StepResult) -> None:
        """Append what the step brought to the sequence, and send it on its way."""
        sequence = result.sequence
        sequence.prompt_logprobs += result.prompt_logprobs
        place = self._places.get(sequence)
        # Another sequence of its request may just have failed, and this one with it.
        if not result.is_last or place is None:
            return
        if sequence.params.max_tokens == 0:
            sequence.finish_reason = FinishReason.LENGTH
            generated = Generated(None, None, sequence.finish_reason)
        elif result.token_id is None:
            self._fail(sequence, EngineError("the model's output is not a number"))
            return
        else:
            sequence.append(result.token_id, self._eos_ids)
            generated = Generated(result.token_id, result.logprob, sequence.finish_reason)
        self._outbox.add(place.stream, (place.number, generated))
        if sequence.finish_reason:
            self._end(sequence)

    def _add(self, stream: TokenStream) -> None:
        self._interruption.heard(stream.sequences[0].tenant)
        for number, sequence in enumerate(stream.sequences):
            self._places[sequence] = _Place(stream, number)
            self._scheduler.add(sequence)

    def _end_all(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            self._end(sequence)

    def _end(self, sequence: Sequence) -> None:
        if place := self._remove(sequence):
            self._outbox.add(place.stream, (place.number, None))

    def _fail(self, sequence: Sequence, error: FaaSMoEError) -> None:
        if place := self._remove(sequence):
            self._outbox.add(place.stream, error)
            # Nobody listens to the request's other sequences any more.
            for other in place.stream.sequences:
                self._remove(other)

    def _fail_all(self, batch: list[Chunk], error: FaaSMoEError) -> None:
        for chunk in batch:
            self._fail(chunk.sequence, error)

    def _remove(self, sequence: Sequence) -> _Place | None:
        place = self._places.pop(sequence, None)
        if place:
            self._scheduler.remove(sequence)
            self._sampler.forget(sequence)
        return place
