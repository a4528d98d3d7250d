"""Which tokens of which sequences the next step computes."""

from collections import deque
from dataclasses import dataclass, field

from control_plane.engine.kv_cache import KVCache
from control_plane.engine.sequence import Sequence


@dataclass(frozen=True)
class Chunk:
    """The tokens `start` to `start + length` of one sequence, computed in one step."""

    sequence: Sequence
    start: int
    length: int

    @property
    def token_ids(self) -> list[int]:
        """The chunk's tokens."""
        return self.sequence.token_ids[self.start : self.start + self.length]

    @property
    def is_last(self) -> bool:
        """Whether the sequence's next token can be sampled after this chunk."""
        return self.start + self.length == len(self.sequence.token_ids)


@dataclass
class Scheduler:
    """First come, first served. Holds the sequences, and the KV pages of those that run."""

    kv_cache: KVCache
    max_batch_tokens: int
    max_sequences: int
    waiting: deque[Sequence] = field(default_factory=deque)
    running: list[Sequence] = field(default_factory=list)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, finished or not, and free its pages."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)
        if sequence in self.running:
            self.running.remove(sequence)
        self.kv_cache.free(sequence)

    def schedule(self) -> list[Chunk]:
        """The next step's chunks: one token of every sequence that decodes, then parts of prompts."""
        self._admit()
        batch: list[Chunk] = []
        budget = self.max_batch_tokens
        # Sorting is stable: decoding sequences come first, prompts stay in their order.
        for sequence in sorted(self.running, key=lambda sequence: sequence.num_uncomputed > 1):
            length = min(sequence.num_uncomputed, budget)
            if length > 0:
                batch.append(Chunk(sequence, sequence.num_computed, length))
                budget -= length
        return batch

    def commit(self, batch: list[Chunk]) -> None:
        """The step succeeded: its tokens are in the KV cache."""
        for chunk in batch:
            chunk.sequence.num_computed += chunk.length

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.max_sequences:
            if not self.kv_cache.can_allocate(self.waiting[0]):
                return
            sequence = self.waiting.popleft()
            self.kv_cache.allocate(sequence)
            self.running.append(sequence)
