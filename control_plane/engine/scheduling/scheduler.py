"""Plans each step: which tokens of which sequences it computes.

A waiting sequence has no memory. A running sequence has a lane and pages of the KV cache. More sequences may
run than one step computes: the others pause, and keep their memory. A preempted sequence loses its memory and
waits again. Sequences in the background pause while there are others, and are the first to be preempted.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice

from control_plane.engine.prefixes.cache import PrefixCache
from control_plane.engine.scheduling import sharing
from control_plane.engine.scheduling.chunk import Chunk
from control_plane.engine.scheduling.express import Express
from control_plane.engine.scheduling.fairness import VirtualTokenCounters, interleave
from control_plane.engine.scheduling.memory import Memory
from control_plane.engine.scheduling.policy import SchedulingPolicy
from control_plane.engine.scheduling.preemption import victims_of_admission, victims_of_growth
from control_plane.engine.scheduling.queues import Queues
from control_plane.engine.state.sequence import Sequence
from control_plane.engine.state.sequence_memory import SequenceMemory


@dataclass
class Scheduler:
    """Holds the sequences, and counts the service that their owners have had."""

    kv_cache: SequenceMemory
    max_batch_tokens: int
    """Most tokens of one step."""
    max_sequences: int
    """Most sequences of one step."""
    policy: SchedulingPolicy
    chunks_prompts: bool = True
    """Whether steps may compute parts of a prompt. A whole prompt may make a step larger than
    `max_batch_tokens`."""
    keeps_prefixes: bool = False
    """Whether sequences continue from what ended ones of their tenants have computed."""
    prefixes: PrefixCache = field(init=False)
    _queues: Queues = field(init=False)
    _memory: Memory = field(init=False)
    _express: Express = field(init=False)
    _stops: bool = field(init=False)
    """Whether what belongs to a part of a prompt is kept where sequences stop for it."""
    _counters: VirtualTokenCounters = field(default_factory=VirtualTokenCounters)
    _behind: set[str] = field(default_factory=set)
    """Owners with sequences that the last step did not serve."""

    def __post_init__(self) -> None:
        shared = sharing.Sharing(self.kv_cache.keeps_prefixes, self.chunks_prompts)
        self._queues = Queues(self.policy, shared)
        # Several tokens cannot follow what was kept if prompts cannot be computed in parts.
        keeps = self.keeps_prefixes and self.chunks_prompts
        self.prefixes = PrefixCache(self.kv_cache, self.policy.owner, keeps)
        self._stops = keeps and not self.kv_cache.keeps_prefixes
        self._memory = Memory(self.kv_cache, self._queues, self.prefixes)
        self._express = Express(self._queues)

    @property
    def num_running(self) -> int:
        """Sequences that have memory."""
        return self._queues.num_running

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for memory."""
        return self._queues.num_waiting

    @property
    def num_preemptions(self) -> int:
        """Preemptions since the start."""
        return self._memory.num_preemptions

    @property
    def running_owners(self) -> frozenset[str]:
        """Owners of sequences that have memory."""
        return frozenset(owner for owner, queue in self._queues.all().items() if queue.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self._queues.add(sequence)
        owner = self._queues.owner(sequence)
        if owner not in self._behind and not sequence.background:
            self._counters.begins_to_wait(owner, self._behind)
            self._behind.add(owner)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, finished or not. Its memory is kept for others, or freed.

        Does nothing for an unknown sequence.
        """
        if queue := self._queues.find(sequence):
            owner = self._queues.owner(sequence)
            if sequence in queue.running:
                queue.running.remove(sequence)
                self._memory.hand_over(sequence)
            elif sequence in queue.waiting:
                queue.waiting.remove(sequence)
                if sequence.stalls:
                    # It held up others without being served. Without a charge, its owner could send it again
                    # and again, be next each time, and hold up the others for ever.
                    prompt = Chunk(sequence, 0, sequence.num_prompt_tokens)
                    self._counters.charge(owner, prompt.service, sequence.weight)
            if not queue:
                self._queues.drop(sequence)
                self._settle(behind=self._behind - {owner})
                self._counters.retain(self._queues.all().keys())
        self.prefixes.keep(sequence)

    def schedule(self) -> list[Chunk]:
        """Plan the next step: one token of each generating sequence, and as much of prompts as fits.

        Admits and preempts sequences as memory allows. The result is empty only if there are no sequences.
        A step that is not committed is planned again, with the same result if no sequence came or left.
        """
        paused = self._paused()
        batch = self._generating(paused)
        self._add_prompts(batch, paused)
        batch = self._express.plan(batch)
        served = Counter(self._queues.owner(sequence) for sequence in batch)
        # Those in the background would lower the counter that a tenant begins with.
        foreground = self._queues.foreground.items()
        self._settle(behind={owner for owner, queue in foreground if len(queue) > served[owner]})
        return list(batch.values())

    def commit(self, batch: list[Chunk]) -> None:
        """Note that the step succeeded: its tokens are in the KV cache, and their owners pay for them."""
        self._express.commit()
        for chunk in batch:
            sequence = chunk.sequence
            # Tokens that are computed again after a preemption were paid for the first time.
            new = max(chunk.end - max(chunk.start, sequence.num_charged), 0)
            service = Chunk(sequence, chunk.end - new, new).service
            self._counters.charge(self._queues.owner(sequence), service, sequence.weight)
            sequence.num_computed = chunk.end
            sequence.num_charged += new
            if self._stops and chunk.end in sequence.stops:
                self._memory.keep(sequence)

    def _paused(self) -> set[Sequence]:
        """Running sequences that have no place in the next step: the newest ones of the largest owners.

        Those that give way have none either.
        """
        excess = self._queues.num_competing - self._limit
        crowded_out = victims_of_growth(self._queues.holders(lambda _: 1), excess)
        return {*crowded_out, *self._queues.giving_way()}

    def _generating(self, paused: set[Sequence]) -> dict[Sequence, Chunk]:
        """One token of each running sequence that generates and does not pause."""
        batch: dict[Sequence, Chunk] = {}
        for sequence in list(chain.from_iterable(queue.running for queue in self._queues.all().values())):
            # An earlier sequence of this loop may have grown, and taken this one's memory.
            if sequence.num_uncomputed > 1 or sequence in paused or not self.kv_cache.pages.holds(sequence):
                continue
            chunk = Chunk(sequence, sequence.num_computed, 1)
            victims = self._memory.grow(chunk)
            for victim in victims:
                batch.pop(victim, None)
            if sequence not in victims:
                batch[sequence] = chunk
        return batch

    def _add_prompts(self, batch: dict[Sequence, Chunk], paused: set[Sequence]) -> None:
        """Fill the step with tokens of prompts, and admit waiting sequences as memory allows."""
        full = False
        for sequence in self._prompts():
            left = self.max_batch_tokens - sum(chunk.length for chunk in batch.values())
            if left <= 0:
                return
            if sequence in paused:
                continue
            if not self.kv_cache.pages.holds(sequence):
                source = self._queues.source(sequence)
                if source and not sharing.is_ready(source):
                    continue
                # Once one sequence has to wait for memory, those after it wait as well. Otherwise small
                # sequences would keep taking the memory that a large one waits for.
                full = full or not self._admit(sequence, batch, paused)
                if full:
                    continue
            batch[sequence] = Chunk(sequence, sequence.num_computed, self._chunk_length(sequence, left))

    def _chunk_length(self, sequence: Sequence, most: int) -> int:
        """Tokens of a prompt's next chunk, in a step that has room for so many."""
        length = self._queues.sharing.length(sequence)
        if not self.chunks_prompts:
            return length
        if self._stops:
            stops = (stop - sequence.num_computed for stop in sequence.stops)
            length = next((left for left in stops if 0 < left < length), length)
        return min(length, most)

    def _prompts(self) -> Iterator[Sequence]:
        """Sequences with prompt tokens to compute, in the order of their owners' counters."""
        queues = sorted(self._queues.competing.items(), key=lambda item: item[1].precedence)
        prompts = {
            # Copies, because admission moves sequences from one list to the other while they are iterated.
            owner: chain(
                [sequence for sequence in queue.running if sequence.num_uncomputed > 1],
                list(islice(queue.waiting, self._limit)),
            )
            for owner, queue in queues
        }
        counters = {owner: self._counters[owner] for owner in prompts}
        return interleave(prompts, counters, self._price)

    def _price(self, sequence: Sequence) -> float:
        """The amount that the sequence's next chunk would add to its owner's counter."""
        start = sequence.num_computed
        if not self.kv_cache.pages.holds(sequence) and (source := self._queues.source(sequence)):
            if not sharing.is_ready(source):
                return 0.0
            start = sharing.shared(sequence, source)
        elif not self.kv_cache.pages.holds(sequence) and (match := self.prefixes.find(sequence)):
            start = match.length
        length = len(sequence.token_ids) - start
        if self.chunks_prompts:
            length = min(length, self.max_batch_tokens)
        return Chunk(sequence, start, length).service / sequence.weight

    def _admit(self, sequence: Sequence, batch: dict[Sequence, Chunk], paused: set[Sequence]) -> bool:
        """Let a waiting sequence run, if necessary in place of others. Returns False if it has to wait.

        It needs a place in this step, for which others pause but keep their memory, and it needs memory, for
        which others are preempted. Nothing changes unless it gets both.
        """
        pausing = self._pausing_for(sequence, paused)
        if pausing is None:
            return False
        victims = self._memory.admit(sequence)
        if victims is None:
            return False
        for other in (*victims, *pausing):
            batch.pop(other, None)
        paused.update(pausing)
        return True

    def _pausing_for(self, sequence: Sequence, paused: set[Sequence]) -> list[Sequence] | None:
        """The sequences that pause so that this one has a place in the step; None if it gets none.

        A place costs its holder one step, so only owners with at least as much service give one up: the
        others would be next anyway.
        """
        if self._queues.num_competing < self._limit:
            return []
        owner = self._queues.owner(sequence)
        holders = {
            other: holder
            for other, holder in self._queues.holders(lambda each: each not in paused).items()
            if other == owner or self._counters[other] >= self._counters[owner]
        }
        return victims_of_admission(holders, owner, sequence.weight, wanted=1, missing=1)

    @property
    def _limit(self) -> int:
        """Most sequences of one step: each has at least one row."""
        return min(self.max_sequences, self.max_batch_tokens)

    def _settle(self, behind: set[str]) -> None:
        """Replace the set of owners with unserved work, and note in the counters who has left it."""
        for owner in self._behind - behind:
            self._counters.stops_waiting(owner)
        self._behind = behind
