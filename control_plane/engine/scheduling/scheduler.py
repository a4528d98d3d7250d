"""Which tokens of which sequences the next step computes."""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice

from control_plane.engine.model.kv_cache import KVCache
from control_plane.engine.scheduling.fairness import (
    OUTPUT_COST,
    PROMPT_COST,
    VirtualTokenCounters,
    interleave,
)
from control_plane.engine.scheduling.preemption import Holder, victims_of_admission, victims_of_growth
from control_plane.engine.sequence import Sequence


@dataclass(frozen=True)
class Chunk:
    """The tokens `start` to `start + length` of one sequence, computed in one step."""

    sequence: Sequence
    start: int
    length: int

    @property
    def end(self) -> int:
        """The sequence's tokens after this chunk."""
        return self.start + self.length

    @property
    def token_ids(self) -> list[int]:
        """The chunk's tokens."""
        return self.sequence.token_ids[self.start : self.end]

    @property
    def is_last(self) -> bool:
        """Whether the sequence's next token can be sampled after this chunk."""
        return self.end == len(self.sequence.token_ids)

    @property
    def service(self) -> float:
        """What computing it is worth, in the units of `fairness`."""
        prompt = max(min(self.end, self.sequence.num_prompt_tokens) - self.start, 0)
        return prompt * PROMPT_COST + (self.length - prompt) * OUTPUT_COST


@dataclass
class TenantQueue:
    """One tenant's sequences, the oldest first: those that have memory, then those that wait for it."""

    weight: float
    running: list[Sequence] = field(default_factory=list)
    waiting: deque[Sequence] = field(default_factory=deque)

    @property
    def precedence(self) -> tuple[float, int]:
        """Of tenants with equal counters, who has least at work goes first, then who wants least."""
        return len(self.running) / self.weight, self.waiting[0].num_uncomputed if self.waiting else 0

    def __len__(self) -> int:
        return len(self.running) + len(self.waiting)

    def __iter__(self) -> Iterator[Sequence]:
        return chain(self.running, self.waiting)


@dataclass
class Scheduler:
    """Holds the sequences. Each step serves tenants by their virtual token counters, and each tenant's
    sequences in the order in which they came; without `fair`, all sequences in that order.
    """

    kv_cache: KVCache
    max_batch_tokens: int
    max_sequences: int
    """Sequences of one step. More may have memory: they pause, and go on when it is their turn."""
    fair: bool = True
    num_running: int = 0
    num_waiting: int = 0
    num_preemptions: int = 0
    counters: VirtualTokenCounters = field(default_factory=VirtualTokenCounters)
    _queues: dict[str, TenantQueue] = field(default_factory=dict)
    _behind: set[str] = field(default_factory=set)
    """Tenants with work that the last step left undone."""

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        owner = self._owner(sequence)
        queue = self._queues.setdefault(owner, TenantQueue(sequence.weight))
        queue.weight = sequence.weight
        queue.waiting.append(sequence)
        if owner not in self._behind:
            self.counters.begins_to_wait(owner, self._behind)
            self._behind.add(owner)
        self._count()

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, finished or not, and free its memory; harmless for one that is not here."""
        owner = self._owner(sequence)
        if queue := self._queues.get(owner):
            if sequence in queue.running:
                queue.running.remove(sequence)
            elif sequence in queue.waiting:
                queue.waiting.remove(sequence)
                if sequence.stalls:
                    # Others have waited for it: it is not the next again for nothing.
                    prompt = Chunk(sequence, 0, sequence.num_prompt_tokens)
                    self.counters.charge(owner, prompt.service, sequence.weight)
            if not queue:
                del self._queues[owner]
                self._settle(behind=self._behind - {owner})
                self.counters.retain(self._queues.keys())
        self.kv_cache.free(sequence)
        self._count()

    def schedule(self) -> list[Chunk]:
        """The next step's chunks: a token of each sequence that generates, and parts of prompts.

        Admits and preempts sequences as memory allows. Empty only when there are no sequences.
        """
        paused = self._paused()
        batch = self._generating(paused)
        self._add_prompts(batch, paused)
        served = Counter(self._owner(sequence) for sequence in batch)
        self._settle({owner for owner, queue in self._queues.items() if len(queue) > served[owner]})
        self._count()
        return list(batch.values())

    def commit(self, batch: list[Chunk]) -> None:
        """The step succeeded: its tokens are in the KV cache."""
        for chunk in batch:
            sequence = chunk.sequence
            # What a preempted sequence has lost is computed again at nobody's expense.
            new = max(chunk.end - max(chunk.start, sequence.num_charged), 0)
            service = Chunk(sequence, chunk.end - new, new).service
            self.counters.charge(self._owner(sequence), service, sequence.weight)
            sequence.num_computed = chunk.end
            sequence.num_charged += new

    def _generating(self, paused: set[Sequence]) -> dict[Sequence, Chunk]:
        """One row for each sequence that generates and does not pause."""
        batch: dict[Sequence, Chunk] = {}
        for sequence in list(self._running()):
            # One that grew before this one may have taken its memory.
            if sequence.num_uncomputed > 1 or sequence in paused or not self.kv_cache.pages.holds(sequence):
                continue
            chunk = Chunk(sequence, sequence.num_computed, 1)
            victims = self._grow(chunk)
            for victim in victims:
                batch.pop(victim, None)
            if sequence not in victims:
                batch[sequence] = chunk
        return batch

    def _add_prompts(self, batch: dict[Sequence, Chunk], paused: set[Sequence]) -> None:
        """The step's other rows go to prompts; waiting sequences begin to run as memory allows."""
        full = False
        for sequence in self._prompts():
            left = self.max_batch_tokens - sum(chunk.length for chunk in batch.values())
            if left == 0:
                return
            if sequence in paused:
                continue
            if not self.kv_cache.pages.holds(sequence):
                # Nobody whose turn is later takes what another waits for.
                full = full or not self._admit(sequence, batch, paused)
                if full:
                    continue
            length = min(sequence.num_uncomputed, left)
            batch[sequence] = Chunk(sequence, sequence.num_computed, length)

    def _prompts(self) -> Iterator[Sequence]:
        """Sequences with prompts to compute, in the order of their tenants' counters."""
        queues = sorted(self._queues.items(), key=lambda item: item[1].precedence)
        prompts = {
            owner: chain(
                [sequence for sequence in queue.running if sequence.num_uncomputed > 1],
                list(islice(queue.waiting, self._limit)),
            )
            for owner, queue in queues
        }
        counters = {owner: self.counters[owner] for owner in self._queues}
        return interleave(prompts, counters, self._price)

    def _paused(self) -> set[Sequence]:
        """Running sequences beyond those that one step computes: the newest of whoever has most."""
        return set(victims_of_growth(self._holders(lambda _: 1), self.num_running - self._limit))

    def _grow(self, chunk: Chunk) -> list[Sequence]:
        """Give a running sequence room for the chunk; returns who was preempted, perhaps itself."""
        pages = self.kv_cache.pages
        missing = pages.missing(chunk.sequence, chunk.end) - pages.num_free_pages
        victims = victims_of_growth(self._holders(pages.held), missing) if missing > 0 else []
        for victim in victims:
            self._preempt(victim)
        if chunk.sequence not in victims:
            pages.allocate(chunk.sequence, chunk.end)
        return victims

    def _admit(self, sequence: Sequence, batch: dict[Sequence, Chunk], paused: set[Sequence]) -> bool:
        """Let a waiting sequence run, if need be in others' place and memory; or have it wait on."""
        pages = self.kv_cache.pages
        num_tokens = len(sequence.token_ids)
        wanted = pages.pages_for(num_tokens)
        # Each that runs may need another page before one is free again.
        missing = wanted + self.num_running - pages.num_free_pages
        places = 1 if self.num_running >= self._limit else 0
        pausing = self._make_room(sequence, lambda one: one not in paused, 1, places, in_turn=True)
        victims = self._make_room(sequence, pages.held, wanted, missing)
        if victims == [] and not pages.num_free_lanes:
            victims = self._make_room(sequence, lambda _: 1, 1, 1)
        if pausing is None:
            return False
        if victims is None:
            sequence.stalls = True
            return False
        for victim in victims:
            self._preempt(victim)
        for victim in (*victims, *pausing):
            batch.pop(victim, None)
        paused.update(pausing)
        queue = self._queues[self._owner(sequence)]
        queue.waiting.remove(sequence)
        queue.running.append(sequence)
        self.num_running += 1
        pages.allocate(sequence, num_tokens)
        return True

    def _make_room(
        self,
        sequence: Sequence,
        held: Callable[[Sequence], int],
        wanted: int,
        missing: int,
        in_turn: bool = False,
    ) -> list[Sequence] | None:
        """Whose share of something scarce the sequence gets; None when it has to wait.

        `in_turn`: nobody gives way to a tenant that has been served more.
        """
        if missing <= 0:
            return []
        owner = self._owner(sequence)
        holders = self._holders(held)
        if in_turn:
            holders = {
                other: holder
                for other, holder in holders.items()
                if other == owner or self.counters[other] >= self.counters[owner]
            }
        return victims_of_admission(holders, owner, sequence.weight, wanted, missing)

    def _preempt(self, sequence: Sequence) -> None:
        """Take the sequence's memory; it goes on later, from its first token, ahead of those that wait."""
        queue = self._queues[self._owner(sequence)]
        queue.running.remove(sequence)
        queue.waiting.appendleft(sequence)
        self.kv_cache.free(sequence)
        sequence.num_computed = 0
        self.num_running -= 1
        self.num_preemptions += 1

    def _running(self) -> Iterator[Sequence]:
        return chain.from_iterable(queue.running for queue in self._queues.values())

    def _holders(self, held: Callable[[Sequence], int]) -> dict[str, Holder[Sequence]]:
        return {
            owner: Holder([(sequence, held(sequence)) for sequence in queue.running], queue.weight)
            for owner, queue in self._queues.items()
            if queue.running
        }

    def _price(self, sequence: Sequence) -> float:
        """What the sequence's next step would add to its tenant's counter."""
        length = min(sequence.num_uncomputed, self.max_batch_tokens)
        return Chunk(sequence, sequence.num_computed, length).service / sequence.weight

    @property
    def _limit(self) -> int:
        """Sequences of one step, each of which may have a row."""
        return min(self.max_sequences, self.max_batch_tokens)

    def _owner(self, sequence: Sequence) -> str:
        return sequence.tenant if self.fair else ""

    def _settle(self, behind: set[str]) -> None:
        """Note who has work left undone, and who has not any more."""
        for owner in self._behind - behind:
            self.counters.stops_waiting(owner)
        self._behind = behind

    def _count(self) -> None:
        self.num_running = sum(len(queue.running) for queue in self._queues.values())
        self.num_waiting = sum(len(queue.waiting) for queue in self._queues.values())
