"""Brings experts' weights into memory when they are called or expected, and drops them to make room.

One call at a time has its turn: its experts are handed to it in ascending order, in waves of those that are
there, while a thread reads the next ones. So a call that needs more experts than the limit allows still runs,
and adds up in the same order as if it had all of them at once.
"""

import sys
import threading
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from functions.contract.wire import ResidencyReport
from functions.expert.arena import Arena
from functions.expert.block_file import BlockFile, BlockReadError
from functions.expert.expert_cache import ExpertCache, Load
from functions.host.memory import ProcessMemory

READ_SECONDS = 30.0
"""A disk that takes longer over one expert counts as broken."""
TURN_SECONDS = 60.0
"""How long a call waits for those before it."""
READ_AHEAD_PIECE = 2 << 20
"""Bytes of an expected expert that are read before looking whether another one is called."""


class Residency:
    """The experts of one block by position: the order in which they lie in its file, layer by layer."""

    def __init__(
        self, file: BlockFile, start: int, layer_of: NDArray[np.int64], expert_nbytes: int, limit: int
    ) -> None:
        """Position 0 begins at byte `start` of the file; `layer_of` [N] is each position's layer.

        `limit` is the most bytes of weights to be held. Raises OSError when there are no addresses for them.
        """
        self._file = file
        self._start = start
        self._expert_nbytes = expert_nbytes
        self._limit = limit
        self._arena = Arena(len(layer_of), expert_nbytes)
        self._cache = ExpertCache(layer_of, limit // expert_nbytes)
        self._slots: dict[int, int] = {}
        """Of the experts that are in memory or on their way there."""
        self._filled: dict[int, int] = {}
        """Bytes that have been read of those on their way."""
        self._read_bytes = 0
        self._failure: BlockReadError | None = None
        self._closed = False
        self._memory = ProcessMemory()
        self._turn = threading.Lock()
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read_all, name="reader", daemon=True)
        self._reader.start()

    @property
    def weights(self) -> NDArray[np.uint8]:
        """The memory that `offsets` tells the places of experts in."""
        return self._arena.buffer

    def offsets(self, positions: Sequence[int]) -> list[int]:
        """Where the experts of a wave begin."""
        return [self._arena.offset(self._slots[position]) for position in positions]

    def call(
        self,
        positions: Sequence[int],
        rows_of: NDArray[np.int64],
        rows: int,
        compute: Callable[[Sequence[int], bool], None],
        expected: Sequence[int] = (),
    ) -> int:
        """Hand these ascending experts of one layer to `compute`, wave by wave, with whether it is the last.

        Expert i is for rows_of[i] of the call's rows; `expected` are those of `expect`. Returns how many
        experts had to be waited for. Raises `BlockReadError`, and `TimeoutError` when other calls take too
        long.
        """
        if not self._turn.acquire(timeout=TURN_SECONDS):
            raise TimeoutError(f"other calls have taken more than {TURN_SECONDS:g} s")
        try:
            with self._changed:
                self._failure = None
                cold = self._cache.call(positions, rows_of, rows)
                if expected:
                    self._cache.expect(expected)
                self._wake_reader()
            while wave := self._next_wave():
                compute(wave, not self._cache.pending)
            return cold
        finally:
            with self._changed:
                self._cache.finish()
                self._give_back(self._cache.drop_surplus())
                self._wake_reader()
            self._turn.release()

    def count_call(self) -> None:
        """What the last call leaves to be done, once its answer is on its way."""
        with self._changed:
            self._cache.count_call()

    def set_limit(self, limit: int) -> None:
        """Hold at most so many bytes of weights from now on; a running call keeps one expert at least."""
        with self._changed:
            if limit != self._limit:
                self._limit = limit
                self._cache.capacity = limit // self._expert_nbytes
                self._give_back(self._cache.drop_surplus())

    def expect(self, positions: Sequence[int]) -> None:
        """These are likely to be called next, the likeliest first: read them when there is time."""
        with self._changed:
            self._cache.expect(positions)
            self._wake_reader()

    def drop_idle(self) -> None:
        """Drop all that the running call does not need."""
        with self._changed:
            self._give_back(self._cache.drop_idle())

    def report(self) -> ResidencyReport:
        """What is held now, and what has happened since the start."""
        with self._changed:
            cache, size = self._cache, self._expert_nbytes
            return ResidencyReport(
                limit_bytes=self._limit,
                resident_experts=len(cache.resident),
                resident_bytes=len(cache.resident) * size,
                overhead_bytes=max(0, self._memory.nbytes() - len(self._slots) * self._arena.slot_nbytes),
                read_bytes=self._read_bytes,
                prefetched_experts=cache.prefetched,
                prefetch_hits=cache.prefetch_hits,
                prefetch_wasted_bytes=cache.prefetch_wasted * size,
                evicted_for_room=cache.evicted["room"],
                evicted_for_limit=cache.evicted["limit"],
                evicted_for_idleness=cache.evicted["idleness"],
            )

    def close(self) -> None:
        """End the reading thread, and close the file."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._reader.join(READ_SECONDS)
        self._file.close()
        self._memory.close()

    def _next_wave(self) -> list[int]:
        """What the call goes on with; nothing at its end."""
        with self._changed:
            wave = self._cache.next_wave()
            # What has just been released may be what the reader needs.
            self._wake_reader()
            if not wave and self._cache.pending:
                self._changed.wait_for(self._call_can_go_on, READ_SECONDS)
                wave = self._cache.next_wave()
            if self._failure is not None:
                raise self._failure
            if not wave and self._cache.pending:
                raise BlockReadError(f"{self._file.path} cannot be read: no answer in {READ_SECONDS:g} s")
            return wave

    def _call_can_go_on(self) -> bool:
        return self._failure is not None or self._cache.has_wave

    def _wake_reader(self) -> None:
        # Only for a reason: waking a thread takes longer than a small call.
        if self._cache.has_reads:
            self._changed.notify_all()

    def _give_back(self, positions: Iterable[int]) -> None:
        for position in positions:
            self._arena.give_back(self._slots.pop(position))

    # What follows runs on the reading thread.

    def _read_all(self) -> None:
        while (load := self._next_load()) is not None:
            try:
                if self._read(load):
                    self._finish(load)
            except BlockReadError as error:
                self._fail(load, error)

    def _next_load(self) -> Load | None:
        """Waits for something to be read; None at the end."""
        with self._changed:
            while not self._closed:
                if load := self._cache.next_load():
                    self._take_slot(load)
                    return load
                self._changed.wait()
        return None

    def _take_slot(self, load: Load) -> None:
        if load.position in self._slots:
            return
        if load.replaces is None:
            self._slots[load.position] = self._arena.take()
        else:
            self._slots[load.position] = self._slots.pop(load.replaces)
            self._filled.pop(load.replaces, None)

    def _read(self, load: Load) -> bool:
        """Read the expert, or its next piece if nobody has called it; returns whether all of it is there."""
        slot, done = self._slots[load.position], self._filled.get(load.position, 0)
        stop = min(self._expert_nbytes, done + READ_AHEAD_PIECE) if load.ahead else self._expert_nbytes
        place = self._arena.place(slot, done, stop)
        self._file.read_into(place, self._start + load.position * self._expert_nbytes + done)
        self._read_bytes += stop - done
        self._filled[load.position] = stop
        return stop == self._expert_nbytes

    def _finish(self, load: Load) -> None:
        with self._changed:
            del self._filled[load.position]
            self._cache.loaded(load)
            self._give_back(self._cache.drop_surplus())
            self._changed.notify_all()

    def _fail(self, load: Load, error: BlockReadError) -> None:
        print(error, file=sys.stderr, flush=True)
        with self._changed:
            self._filled.pop(load.position, None)
            self._give_back([load.position])
            if self._cache.failed(load):
                self._failure = error
            self._changed.notify_all()
