"""The step loop: schedule, run, commit, collect. Everything here belongs to the engine's thread."""

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from control_plane.engine.experts.dispatcher import RowsFailed
from control_plane.engine.model.runner import ModelRunner
from control_plane.engine.model.sampler import Sampler
from control_plane.engine.scheduling.chunk import Chunk
from control_plane.engine.scheduling.interruption import Interrupted
from control_plane.engine.scheduling.scheduler import Scheduler
from control_plane.engine.state.sequence import FinishReason, Generated, Sequence
from control_plane.engine.state.stopwatch import StepPart
from control_plane.engine.step import Step, StepResult
from control_plane.engine.stream import Outbox, TokenStream
from control_plane.errors import EngineError, FaaSMoEError
from control_plane.faas.invocation import ExpertInvoker, ExpertUsage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineStatus:
    """The engine's load, and what it has done since its start."""

    running: int
    """Sequences that have memory."""
    waiting: int
    """Sequences that wait for memory."""
    kv_cache_used: float
    """Share of the KV cache's pages that sequences hold, 0 to 1."""
    prefix_cache_used: float
    """Share of the KV cache's pages that hold what ended sequences have computed, 0 to 1."""
    prefix_evictions: int
    """Number of ended sequences whose pages were needed by others."""
    preemptions: int
    """Number of times that a sequence had to give up its memory."""
    steps: int
    """Number of completed steps."""
    step_seconds: Mapping[StepPart, float]
    """Seconds that each part of all steps took."""


@dataclass(frozen=True)
class _Place:
    """The stream that a sequence's tokens go to, and the sequence's number in it."""

    stream: TokenStream
    number: int


class EngineCore:
    """Holds the sequences of all requests, and computes them one step at a time."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: ModelRunner,
        invoker: ExpertInvoker,
        eos_ids: frozenset[int],
        stopping: threading.Event,
    ) -> None:
        """`stopping` is set before the invoker is aborted: calls that fail from then on are no errors."""
        self._scheduler = scheduler
        self._invoker = invoker
        self._eos_ids = eos_ids
        self._stopping = stopping
        self._interruption = runner.interruption
        self._stopwatch = runner.stopwatch
        self._sampler = Sampler(eos_ids)
        self._step = Step(runner, self._sampler)
        self._places: dict[Sequence, _Place] = {}
        self._outbox = Outbox()
        self.status = self._measure()
        """As of the last time that sequences started or ended. Other threads may read it: it is replaced as
        a whole, so its numbers belong together."""

    @property
    def has_work(self) -> bool:
        """Whether there are sequences to compute."""
        return bool(self._places)

    def add(self, stream: TokenStream) -> None:
        """Queue a request's sequences."""
        self._interruption.acknowledge(stream.sequences[0].tenant)
        for number, sequence in enumerate(stream.sequences):
            self._places[sequence] = _Place(stream, number)
            if sequence.matcher:
                sequence.matcher.begin()
            self._scheduler.add(sequence)

    def cancel(self, sequences: Iterable[Sequence]) -> None:
        """End sequences; those that have ended, or were never added, are skipped."""
        for sequence in sequences:
            self._end(sequence)

    def step(self) -> None:
        """Compute one step of all sequences that the scheduler chooses, and send their tokens."""
        self._stopwatch.start()
        batch = self._scheduler.schedule()
        self.status = self._measure()
        if batch:
            for result in self._run(batch):
                self._collect(result)
        self._send()
        self._stopwatch.lap(StepPart.SCHEDULE)

    def fail_all(self, error: FaaSMoEError) -> None:
        """End all sequences with the error."""
        for sequence in list(self._places):
            self._fail(sequence, error)
        self._send()

    def _run(self, batch: list[Chunk]) -> list[StepResult]:
        """The committed step's results. A step that fails changes nothing; the next step computes it again.

        A sequence ends if it needs a function that failed for good; all of the batch end at any other error.
        There are no results either when the step gives way to a newcomer.
        """
        now, usage_before = time.monotonic(), self._invoker.usage
        for chunk in batch:
            chunk.sequence.started = chunk.sequence.started or now
        self._interruption.begin(self._interruptible_tenants())
        try:
            results = self._step.run(batch)
        except Interrupted:
            return []
        except RowsFailed as failed:
            # While stopping, the error only says that our own abort took effect: `fail_all` follows.
            if not self._stopping.is_set():
                self._fail_chunks(_with_rows(batch, failed.rows), failed.error)
            return []
        except FaaSMoEError as error:
            self._fail_chunks(batch, error)
            return []
        except Exception:
            # The edge of the thread: an unexpected error in this batch must not stop the next one.
            logger.exception("a step failed")
            self._fail_chunks(batch, EngineError("internal error"))
            return []
        finally:
            self._share_usage(batch, self._invoker.usage - usage_before)
        self._interruption.end()
        self._stopwatch.steps += 1
        self._scheduler.commit(batch)
        return results

    def _interruptible_tenants(self) -> frozenset[str]:
        """The tenants whose steps a newcomer may interrupt: those with running sequences, or none."""
        if not self._scheduler.policy.gives_way_to_newcomers:
            return frozenset()
        return self._scheduler.running_owners

    def _share_usage(self, batch: list[Chunk], usage: ExpertUsage) -> None:
        """Share the step's usage by rows, because each row calls the same number of experts."""
        rows = sum(chunk.length for chunk in batch)
        for chunk in batch:
            chunk.sequence.usage += usage.share(chunk.length / rows)

    def _collect(self, result: StepResult) -> None:
        """Append the result to its sequence and to the outbox, and end the sequence if it is complete."""
        sequence = result.sequence
        sequence.prompt_logprobs += result.prompt_logprobs
        place = self._places.get(sequence)
        # Without a place: another sequence of the same request has just failed, which ended this one, too.
        if not result.is_last or place is None:
            return
        if sequence.params.max_tokens == 0:
            sequence.finish_reason = FinishReason.LENGTH
            generated = Generated(None, None, sequence.finish_reason)
        elif result.token_id is None:
            self._fail(sequence, _problem(sequence))
            return
        else:
            sequence.append(result.token_id, self._eos_ids)
            if sequence.matcher and not sequence.finish_reason:
                sequence.matcher.accept(result.token_id)
            generated = Generated(result.token_id, result.logprob, sequence.finish_reason)
        self._outbox.add(place.stream, (place.number, generated))
        if sequence.finish_reason:
            self._end(sequence)

    def _end(self, sequence: Sequence) -> None:
        if place := self._remove(sequence):
            self._outbox.add(place.stream, (place.number, None))

    def _fail(self, sequence: Sequence, error: FaaSMoEError) -> None:
        """End the sequence's whole request: its stream raises the error and yields nothing more."""
        if place := self._remove(sequence):
            self._outbox.add(place.stream, error)
            for other in place.stream.sequences:
                self._remove(other)

    def _fail_chunks(self, chunks: Iterable[Chunk], error: FaaSMoEError) -> None:
        for chunk in chunks:
            self._fail(chunk.sequence, error)

    def _remove(self, sequence: Sequence) -> _Place | None:
        place = self._places.pop(sequence, None)
        if place:
            self._scheduler.remove(sequence)
            self._sampler.forget(sequence)
        return place

    def _send(self) -> None:
        """Hand the outbox over. The status comes first: a listener that sees the end sees it there, too."""
        self.status = self._measure()
        self._outbox.flush()

    def _measure(self) -> EngineStatus:
        scheduler, pages = self._scheduler, self._scheduler.kv_cache.pages
        kept = scheduler.prefixes.num_pages
        return EngineStatus(
            scheduler.num_running,
            scheduler.num_waiting,
            1 - (pages.num_free_pages + kept) / pages.num_pages,
            kept / pages.num_pages,
            scheduler.prefixes.num_evicted,
            scheduler.num_preemptions,
            self._stopwatch.steps,
            self._stopwatch.seconds,
        )


def _problem(sequence: Sequence) -> FaaSMoEError:
    """Why a sequence has no next token."""
    error = sequence.matcher.error if sequence.matcher else None
    return error or EngineError("the model's output is not a number")


def _with_rows(batch: Iterable[Chunk], chosen: NDArray[np.bool_]) -> Iterator[Chunk]:
    """The chunks of a batch that have one of the chosen rows; `chosen` [T] is over all rows of the batch."""
    start = 0
    for chunk in batch:
        if chosen[start : start + chunk.length].any():
            yield chunk
        start += chunk.length
