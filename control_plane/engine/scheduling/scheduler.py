"""Plans each step: which tokens of which sequences it computes, and who has memory.

A waiting sequence has no memory. A running sequence has a lane and pages of the KV cache. More sequences may
run than one step computes: the others pause, and keep their memory. A preempted sequence loses its memory and
waits again. Sequences in the background pause while there are others, and are the first to be preempted.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice

from control_plane.engine.scheduling import sharing
from control_plane.engine.scheduling.chunk import Chunk
from control_plane.engine.scheduling.fairness import VirtualTokenCounters, interleave
from control_plane.engine.scheduling.policy import SchedulingPolicy
from control_plane.engine.scheduling.preemption import Holder, victims_of_admission, victims_of_growth
from control_plane.engine.state.kv_cache import KVCache
from control_plane.engine.state.sequence import Sequence

STEPS_BETWEEN_EXPRESS = 4
"""Least steps for all between two steps for newcomers alone, who could otherwise take most of the time."""


@dataclass
class SequenceQueue:
    """One owner's sequences, running and waiting, each the oldest first."""

    weight: float
    background: bool = False
    running: list[Sequence] = field(default_factory=list)
    waiting: deque[Sequence] = field(default_factory=deque)

    @property
    def precedence(self) -> tuple[float, int]:
        """Tie-break: fewest running sequences per weight, then the shortest pending work."""
        return len(self.running) / self.weight, self.waiting[0].num_uncomputed if self.waiting else 0

    def __len__(self) -> int:
        return len(self.running) + len(self.waiting)


@dataclass
class Scheduler:
    """Holds the sequences in one queue for each owner. The policy says who owns a sequence."""

    kv_cache: KVCache
    max_batch_tokens: int
    """Most tokens of one step."""
    max_sequences: int
    """Most sequences of one step."""
    policy: SchedulingPolicy
    num_preemptions: int = 0
    """Preemptions since the start."""
    _counters: VirtualTokenCounters = field(default_factory=VirtualTokenCounters)
    _queues: dict[str, SequenceQueue] = field(default_factory=dict)
    _num_foreground: int = 0
    """Queues that are not in the background."""
    _behind: set[str] = field(default_factory=set)
    """Owners with sequences that the last step did not serve."""
    _steps_since_express: int = 0
    _is_express: bool = False
    """Whether the planned step is for newcomers only."""

    @property
    def num_running(self) -> int:
        """Sequences that have memory."""
        return sum(len(queue.running) for queue in self._queues.values())

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for memory."""
        return sum(len(queue.waiting) for queue in self._queues.values())

    @property
    def running_owners(self) -> frozenset[str]:
        """Owners of sequences that have memory."""
        return frozenset(owner for owner, queue in self._queues.items() if queue.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        owner = self._owner(sequence)
        if owner not in self._queues:
            self._queues[owner] = SequenceQueue(sequence.weight, sequence.background)
            self._num_foreground += not sequence.background
        queue = self._queues[owner]
        queue.weight = sequence.weight
        queue.waiting.append(sequence)
        if owner not in self._behind and not sequence.background:
            self._counters.begins_to_wait(owner, self._behind)
            self._behind.add(owner)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, finished or not, and free its memory. Does nothing for an unknown sequence."""
        owner = self._owner(sequence)
        if queue := self._queues.get(owner):
            if sequence in queue.running:
                queue.running.remove(sequence)
                self._hand_over(sequence, queue)
            elif sequence in queue.waiting:
                queue.waiting.remove(sequence)
                if sequence.stalls:
                    # It held up others without being served. Without a charge, its owner could send it again
                    # and again, be next each time, and hold up the others for ever.
                    prompt = Chunk(sequence, 0, sequence.num_prompt_tokens)
                    self._counters.charge(owner, prompt.service, sequence.weight)
            if not queue:
                del self._queues[owner]
                self._num_foreground -= not queue.background
                self._settle(behind=self._behind - {owner})
                self._counters.retain(self._queues.keys())
        self.kv_cache.free(sequence)

    def schedule(self) -> list[Chunk]:
        """Plan the next step: one token of each generating sequence, and as much of prompts as fits.

        Admits and preempts sequences as memory allows. The result is empty only if there are no sequences.
        A step that is not committed is planned again, with the same result if no sequence came or left.
        """
        paused = self._paused()
        batch = self._generating(paused)
        self._add_prompts(batch, paused)
        batch = self._express(batch)
        served = Counter(self._owner(sequence) for sequence in batch)
        # Those in the background would lower the counter that a tenant begins with.
        behind = {
            owner
            for owner, queue in self._queues.items()
            if len(queue) > served[owner] and not queue.background
        }
        self._settle(behind)
        return list(batch.values())

    def commit(self, batch: list[Chunk]) -> None:
        """Note that the step succeeded: its tokens are in the KV cache, and their owners pay for them."""
        self._steps_since_express = 0 if self._is_express else self._steps_since_express + 1
        for chunk in batch:
            sequence = chunk.sequence
            # Tokens that are computed again after a preemption were paid for the first time.
            new = max(chunk.end - max(chunk.start, sequence.num_charged), 0)
            service = Chunk(sequence, chunk.end - new, new).service
            self._counters.charge(self._owner(sequence), service, sequence.weight)
            sequence.num_computed = chunk.end
            sequence.num_charged += new

    def _express(self, batch: dict[Sequence, Chunk]) -> dict[Sequence, Chunk]:
        """The newcomers' chunks alone, if there are any and no recent step was for newcomers alone.

        A newcomer has had no step yet. With a step of its own, it waits for its first token as long as at an
        idle engine. The others wait for that short step.
        """
        newcomers = {
            sequence: chunk
            for sequence, chunk in batch.items()
            if not any(other.num_charged for other in self._queues[self._owner(sequence)].running)
        }
        self._is_express = (
            0 < len(newcomers) < len(batch)
            and self.policy.gives_way_to_newcomers
            and self._steps_since_express >= STEPS_BETWEEN_EXPRESS
        )
        return newcomers if self._is_express else batch

    def _paused(self) -> set[Sequence]:
        """Running sequences that have no place in the next step: the newest ones of the largest owners.

        Those that give way have none either.
        """
        crowded_out = victims_of_growth(self._holders(lambda _: 1), self._num_competing - self._limit)
        return {*crowded_out, *self._giving_way()}

    def _generating(self, paused: set[Sequence]) -> dict[Sequence, Chunk]:
        """One token of each running sequence that generates and does not pause."""
        batch: dict[Sequence, Chunk] = {}
        for sequence in list(chain.from_iterable(queue.running for queue in self._queues.values())):
            # An earlier sequence of this loop may have grown, and taken this one's memory.
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
        """Fill the step with tokens of prompts, and admit waiting sequences as memory allows."""
        full = False
        for sequence in self._prompts():
            left = self.max_batch_tokens - sum(chunk.length for chunk in batch.values())
            if left == 0:
                return
            if sequence in paused:
                continue
            if not self.kv_cache.pages.holds(sequence):
                source = self._source(sequence)
                if source and not sharing.is_ready(source):
                    continue
                # Once one sequence has to wait for memory, those after it wait as well. Otherwise small
                # sequences would keep taking the memory that a large one waits for.
                full = full or not self._admit(sequence, batch, paused)
                if full:
                    continue
            length = min(sequence.num_uncomputed, left)
            batch[sequence] = Chunk(sequence, sequence.num_computed, length)

    def _prompts(self) -> Iterator[Sequence]:
        """Sequences with prompt tokens to compute, in the order of their owners' counters."""
        competing = [item for item in self._queues.items() if not self._gives_way(item[1])]
        queues = sorted(competing, key=lambda item: item[1].precedence)
        prompts = {
            # Copies, because admission moves sequences from one list to the other while they are iterated.
            owner: chain(
                [sequence for sequence in queue.running if sequence.num_uncomputed > 1],
                list(islice(queue.waiting, self._limit)),
            )
            for owner, queue in queues
        }
        counters = {owner: self._counters[owner] for owner in self._queues}
        return interleave(prompts, counters, self._price)

    def _price(self, sequence: Sequence) -> float:
        """The amount that the sequence's next chunk would add to its owner's counter."""
        start = sequence.num_computed
        if not self.kv_cache.pages.holds(sequence) and (source := self._source(sequence)):
            if not sharing.is_ready(source):
                return 0.0
            start = sharing.shared(sequence, source)
        length = min(len(sequence.token_ids) - start, self.max_batch_tokens)
        return Chunk(sequence, start, length).service / sequence.weight

    def _grow(self, chunk: Chunk) -> list[Sequence]:
        """Give a running sequence room for the chunk; returns the preempted sequences, perhaps itself."""
        pages = self.kv_cache.pages
        missing = pages.missing(chunk.sequence, chunk.end) - pages.num_free_pages
        victims, missing = self._taken_from_background(pages.held, missing)
        if missing > 0:
            victims += victims_of_growth(self._holders(pages.held), missing)
        for victim in victims:
            self._preempt(victim)
        if chunk.sequence not in victims:
            pages.allocate(chunk.sequence, chunk.end)
        return victims

    def _admit(self, sequence: Sequence, batch: dict[Sequence, Chunk], paused: set[Sequence]) -> bool:
        """Let a waiting sequence run, if necessary in place of others. Returns False if it has to wait.

        It needs a place in this step, for which others pause but keep their memory, and it needs memory, for
        which others are preempted. Nothing changes unless it gets both.
        """
        pausing = self._pausing_for(sequence, paused)
        if pausing is None:
            return False
        victims = self._preempted_for(sequence)
        if victims is None:
            sequence.stalls = True
            return False
        for victim in victims:
            self._preempt(victim)
        for other in (*victims, *pausing):
            batch.pop(other, None)
        paused.update(pausing)
        source = self._source(sequence)
        queue = self._queues[self._owner(sequence)]
        queue.waiting.remove(sequence)
        queue.running.append(sequence)
        self.kv_cache.pages.allocate(sequence, len(sequence.token_ids))
        if source:
            sharing.take_over(sequence, source)
            self.kv_cache.copy(source, sequence, sequence.num_computed)
        return True

    def _source(self, sequence: Sequence) -> Sequence | None:
        """The running sequence that has computed most of the same prompt, if there is one."""
        return sharing.find_source(sequence, self._queues[self._owner(sequence)].running)

    def _hand_over(self, sequence: Sequence, queue: SequenceQueue) -> None:
        """Give an ending sequence's memory to a waiting one, if no other sequence has computed the prompt."""
        if sequence.prompt_key is None or not sharing.is_ready(sequence) or self._source(sequence):
            return
        pages = self.kv_cache.pages
        for heir in queue.waiting:
            if heir.prompt_key is sequence.prompt_key and not pages.missing(sequence, len(heir.token_ids)):
                queue.waiting.remove(heir)
                queue.running.append(heir)
                pages.hand_over(sequence, heir)
                sharing.take_over(heir, sequence)
                return

    def _pausing_for(self, sequence: Sequence, paused: set[Sequence]) -> list[Sequence] | None:
        """The sequences that pause so that this one has a place in the step; None if it gets none.

        A place costs its holder one step, so only owners with at least as much service give one up: the
        others would be next anyway.
        """
        if self._num_competing < self._limit:
            return []
        owner = self._owner(sequence)
        holders = {
            other: holder
            for other, holder in self._holders(lambda each: each not in paused).items()
            if other == owner or self._counters[other] >= self._counters[owner]
        }
        return victims_of_admission(holders, owner, sequence.weight, wanted=1, missing=1)

    def _preempted_for(self, sequence: Sequence) -> list[Sequence] | None:
        """The sequences to preempt so that this one gets its memory; None if it gets none.

        Memory is shared by weight alone, whatever service the owners have had: a preempted sequence has to
        be computed again, so an order that changes with each step would waste too much.
        """
        pages = self.kv_cache.pages
        wanted = pages.pages_for(len(sequence.token_ids))
        # One page for each running sequence stays free. Each may need one before another sequence ends, and
        # without them the next step would preempt what this one has admitted.
        missing = wanted + self.num_running - pages.num_free_pages
        victims = self._make_room(sequence, pages.held, wanted, missing)
        if victims == [] and not pages.num_free_lanes:
            # There are pages enough, but no lane: take one from the owner of most lanes.
            victims = self._make_room(sequence, lambda _: 1, wanted=1, missing=1)
        return victims

    def _make_room(
        self, sequence: Sequence, held: Callable[[Sequence], int], wanted: int, missing: int
    ) -> list[Sequence] | None:
        """The sequences to take from so that this one gets its share of a resource; None if it has to wait.

        `held` is the amount of the resource that a running sequence holds.
        """
        victims, missing = self._taken_from_background(held, missing)
        if missing <= 0:
            return victims
        owner = self._owner(sequence)
        others = victims_of_admission(self._holders(held), owner, sequence.weight, wanted, missing)
        return None if others is None else victims + others

    def _preempt(self, sequence: Sequence) -> None:
        """Take the sequence's memory. It waits at the head of its queue, and is computed from its start."""
        queue = self._queues[self._owner(sequence)]
        queue.running.remove(sequence)
        queue.waiting.appendleft(sequence)
        self.kv_cache.free(sequence)
        sequence.num_computed = 0
        self.num_preemptions += 1

    def _taken_from_background(
        self, held: Callable[[Sequence], int], missing: int
    ) -> tuple[list[Sequence], int]:
        """The sequences that give way for a resource, the newest first, and what is missing without them."""
        victims: list[Sequence] = []
        for sequence in self._giving_way() if missing > 0 else ():
            if missing <= 0:
                break
            victims.append(sequence)
            missing -= held(sequence)
        return victims, missing

    def _giving_way(self) -> list[Sequence]:
        """The running sequences that give way to others, the newest of each owner first."""
        queues = [queue for queue in self._queues.values() if self._gives_way(queue)]
        return [sequence for queue in queues for sequence in reversed(queue.running)]

    def _gives_way(self, queue: SequenceQueue) -> bool:
        """Whether the queue is in the background, and others are not."""
        return queue.background and self._num_foreground > 0

    def _owner(self, sequence: Sequence) -> str:
        owner = self.policy.owner(sequence)
        return f"{owner}, in the background" if sequence.background else owner

    @property
    def _num_competing(self) -> int:
        """Running sequences that do not give way."""
        return sum(len(queue.running) for queue in self._queues.values() if not self._gives_way(queue))

    def _holders(self, held: Callable[[Sequence], int]) -> dict[str, Holder[Sequence]]:
        """The amounts of a resource that running sequences hold, by owner, without those that give way."""
        return {
            owner: Holder([(sequence, held(sequence)) for sequence in queue.running], queue.weight)
            for owner, queue in self._queues.items()
            if queue.running and not self._gives_way(queue)
        }

    @property
    def _limit(self) -> int:
        """Most sequences of one step: each has at least one row."""
        return min(self.max_sequences, self.max_batch_tokens)

    def _settle(self, behind: set[str]) -> None:
        """Replace the set of owners with unserved work, and note in the counters who has left it."""
        for owner in self._behind - behind:
            self._counters.stops_waiting(owner)
        self._behind = behind
