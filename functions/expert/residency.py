"""Reads experts' weights into memory when they are called or predicted, and drops them to make room.

One call at a time uses the experts. It computes with them in ascending order, in waves of those that are in
memory, while a thread reads the next ones. So a call that needs more experts than the limit allows still
runs, and adds up in the same order as if all of them were in memory at once.

`changed` guards everything here, and is held for moments. `state.in_call` is set from a call's first wait to
its last computation. Calls are also computed in C (functions/fast_path), if they need only experts that a
call here has used since they were read: `ready` says where those are.
"""

import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from functions.contract.messages import ResidencyReport
from functions.expert.arena import Arena
from functions.expert.block_file import BlockFile, BlockReadError
from functions.expert.eviction import NextUse
from functions.expert.expert_cache import ExpertCache, ExpertRead
from functions.fast_path.shared import ResidencyState, condition
from functions.host.memory import ProcessMemory

READ_SECONDS = 30.0
"""A disk that takes longer over one expert counts as broken."""
CALL_WAIT_SECONDS = 60.0
"""How long a call waits for those before it."""
PREFETCH_PIECE_BYTES = 2 << 20
"""A prefetch reads so many bytes before it looks whether a call needs another expert."""


class Wave(NamedTuple):
    """Experts of a call that are in memory, and stay there until the call asks for its next wave."""

    offsets: list[int]
    """The byte of `Residency.weights` at which each expert begins."""
    is_last: bool


@dataclass
class Waves:
    """The waves of one call; each has the next of the call's experts, in ascending order."""

    cold: int
    """Experts of the call that were not in memory when it began."""
    _next_wave: Callable[[], Wave]

    def __iter__(self) -> Iterator[Wave]:
        """Waits for experts that are being read. Raises `BlockReadError`."""
        is_last = False
        while not is_last:
            wave = self._next_wave()
            yield wave
            is_last = wave.is_last


class Residency:
    """The experts of one block by position: the order in which they lie in its file, layer by layer."""

    def __init__(self, file: BlockFile, limit: int) -> None:
        """Hold at most `limit` bytes of weights. Raises OSError when there are no addresses for them."""
        self._file = file
        self._expert_nbytes = file.expert_nbytes
        self._limit = limit
        self._arena = Arena(len(file.experts), file.expert_nbytes)
        layer_of = np.array([expert.layer for expert in file.experts], np.int64)
        self._cache = ExpertCache(layer_of, limit // file.expert_nbytes, self._held_in_c)
        self._slots: dict[int, int] = {}
        """The arena's slot of each expert that is in memory or being read."""
        self._filled: dict[int, int] = {}
        """Bytes read so far of each expert that is being read."""
        self._read_bytes = 0
        self._failure: BlockReadError | None = None
        self._closed = False
        self._memory = ProcessMemory()
        self.changed = condition()
        """Guards the state and the arrays below, and tells of their changes."""
        self.state = ResidencyState(is_plain=1)
        self.ready = np.full(len(file.experts), -1, np.int64)
        """[N]: the byte of `weights` of each expert that a call in C may use; -1 for others."""
        self.held = np.zeros(len(file.experts), np.int64)
        """[N]: first the experts that a call in C uses now; the state says how many."""
        self._reported = ResidencyReport()
        """What the last version of the report says."""
        self._reader = threading.Thread(target=self._read_all, name="reader", daemon=True)
        self._reader.start()

    @property
    def next_use(self) -> NextUse:
        """The estimates that choose which expert is dropped."""
        return self._cache.next_use

    @property
    def weights(self) -> NDArray[np.uint8]:
        """The memory of all experts."""
        return self._arena.buffer

    @contextmanager
    def call(
        self,
        positions: Sequence[int],
        rows_of: NDArray[np.int64],
        rows: int,
        predicted: Sequence[int] = (),
    ) -> Iterator[Waves]:
        """Use these ascending experts of one layer, wave by wave, until the end of the context.

        Expert i is for rows_of[i] of the call's rows; `predicted` is a prediction as `prefetch` takes it. The
        next wave is read while the caller computes with the present one. Raises `TimeoutError` when other
        calls take too long.
        """
        with self.changed:
            if not self.changed.wait_for(self._may_begin, CALL_WAIT_SECONDS):
                raise TimeoutError(f"other calls have taken more than {CALL_WAIT_SECONDS:g} s")
            self.state.in_call = 1
        try:
            with self.changed:
                self._failure = None
                cold = self._cache.call(positions, rows_of, rows)
                if predicted:
                    self._cache.prefetch(predicted)
                self._wake_reader()
            yield Waves(cold, self._next_wave)
        finally:
            with self.changed:
                self._cache.finish()
                self._free(self._cache.drop_surplus())
                self._publish(positions)
                self.state.in_call = 0
                self._wake_reader()

    def record_call(self) -> None:
        """Do the last call's bookkeeping, which can wait until its response has been sent."""
        with self.changed:
            self._cache.record_call()
            self._publish()

    def set_limit(self, limit: int) -> None:
        """Hold at most `limit` bytes of weights from now on; a running call keeps at least one expert."""
        with self.changed:
            if limit != self._limit:
                self._limit = limit
                self._cache.capacity = limit // self._expert_nbytes
                self._free(self._cache.drop_surplus())
                self._publish()

    def prefetch(self, positions: Sequence[int]) -> None:
        """Read these experts, the likeliest first, when no call needs the disk."""
        with self.changed:
            self._cache.prefetch(positions)
            self._publish()
            self._wake_reader()

    def drop_idle(self) -> None:
        """Drop all experts that the running call does not need."""
        with self.changed:
            self._free(self._cache.drop_idle())
            self._publish()

    def report(self) -> ResidencyReport:
        """Memory in use now, and counts since the start."""
        with self.changed:
            weights_nbytes = len(self._slots) * self._arena.slot_nbytes
            return replace(self._report(), overhead_bytes=max(0, self._memory.nbytes() - weights_nbytes))

    def close(self) -> None:
        """End the reading thread and close the file."""
        with self.changed:
            self._closed = True
            self.changed.notify_all()
        self._reader.join(READ_SECONDS)
        self._file.close()
        self._memory.close()

    def _report(self) -> ResidencyReport:
        """The report without the process's own memory."""
        cache, size = self._cache, self._expert_nbytes
        return ResidencyReport(
            limit_bytes=self._limit,
            resident_experts=len(cache.resident),
            resident_bytes=len(cache.resident) * size,
            read_bytes=self._read_bytes,
            prefetched_experts=cache.prefetched,
            prefetch_hits=cache.prefetch_hits,
            prefetch_wasted_bytes=cache.prefetch_wasted * size,
            evicted_for_room=cache.evicted["room"],
            evicted_for_limit=cache.evicted["limit"],
            evicted_for_idleness=cache.evicted["idleness"],
        )

    def _publish(self, called: Sequence[int] = ()) -> None:
        """Tell calls in C what has changed; from now on they may use the experts that were `called`."""
        self.state.is_plain = not self._cache.expects
        if (report := self._report()) != self._reported:
            self._reported = report
            self.state.version += 1
        for position in called:
            if self.ready[position] < 0 and position in self._cache.resident:
                self.ready[position] = self._arena.offset(self._slots[position])

    def _held_in_c(self) -> Collection[int]:
        """The experts that a call in C uses now. Whoever asks is woken at its end."""
        if not self.state.held:
            return ()
        self.state.wanted = 1
        return list(map(int, self.held[: self.state.held]))

    def _may_begin(self) -> bool:
        self.state.wanted = self.state.in_call
        return not self.state.in_call

    def _next_wave(self) -> Wave:
        """The next wave of a call that is not complete, as soon as its first expert is in memory."""
        with self.changed:
            positions = self._cache.next_wave()
            # The reader may need the place of an expert that this has just unpinned.
            self._wake_reader()
            if not positions:
                self.changed.wait_for(self._call_can_go_on, READ_SECONDS)
                positions = self._cache.next_wave()
            if self._failure is not None:
                raise self._failure
            if not positions:
                raise BlockReadError(f"{self._file.path} cannot be read: no answer in {READ_SECONDS:g} s")
            offsets = [self._arena.offset(self._slots[position]) for position in positions]
            return Wave(offsets, is_last=not self._cache.pending)

    def _call_can_go_on(self) -> bool:
        return self._failure is not None or self._cache.has_wave

    def _wake_reader(self) -> None:
        # Only for a reason: waking a thread takes longer than a small call.
        if self._cache.has_reads or (self.state.wanted and not self.state.in_call):
            self.state.wanted = 0
            self.changed.notify_all()

    def _free(self, positions: Iterable[int]) -> None:
        for position in positions:
            self.ready[position] = -1
            self._arena.free(self._slots.pop(position))

    # The methods below run on the reading thread.

    def _read_all(self) -> None:
        while (read := self._wait_for_read()) is not None:
            try:
                # Without the lock: calls compute, begin and end meanwhile.
                if self._fill(read):
                    self._complete(read)
            except BlockReadError as error:
                self._fail(read, error)

    def _wait_for_read(self) -> ExpertRead | None:
        """The next read, with a slot for it; None when the block is closed."""
        with self.changed:
            while not self._closed:
                # Experts that a call in C has used until now may exceed the limit.
                self._free(self._cache.drop_surplus())
                self._publish()
                if read := self._cache.next_read():
                    self._take_slot(read)
                    return read
                self.changed.wait()
        return None

    def _take_slot(self, read: ExpertRead) -> None:
        if read.position in self._slots:
            return
        if read.replaces is None:
            self._slots[read.position] = self._arena.take()
        else:
            self.ready[read.replaces] = -1
            self._slots[read.position] = self._slots.pop(read.replaces)
            self._filled.pop(read.replaces, None)

    def _fill(self, read: ExpertRead) -> bool:
        """Read the rest of the expert, or its next piece for a prefetch; returns whether it is complete."""
        slot, done = self._slots[read.position], self._filled.get(read.position, 0)
        stop = self._expert_nbytes
        if read.is_prefetch:
            stop = min(stop, done + PREFETCH_PIECE_BYTES)
        self._file.read(read.position, self._arena.place(slot, 0, self._expert_nbytes), done, stop)
        self._read_bytes += stop - done
        self._filled[read.position] = stop
        return stop == self._expert_nbytes

    def _complete(self, read: ExpertRead) -> None:
        with self.changed:
            del self._filled[read.position]
            self._cache.complete(read)
            self._free(self._cache.drop_surplus())
            self._publish()
            self.changed.notify_all()

    def _fail(self, read: ExpertRead, error: BlockReadError) -> None:
        print(error, file=sys.stderr, flush=True)
        with self.changed:
            self._filled.pop(read.position, None)
            self._free([read.position])
            if self._cache.fail(read):
                self._failure = error
            self._publish()
            self.changed.notify_all()
