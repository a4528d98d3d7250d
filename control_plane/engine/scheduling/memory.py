"""Decides which sequences have memory: lanes and pages of the KV cache.

Memory is shared by weight alone, whatever service the owners have had: a preempted sequence has to be
computed again, so an order that changes with each step would waste too much. What ended sequences have left
goes first, then that of sequences in the background.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from control_plane.engine.prefixes.cache import PrefixCache
from control_plane.engine.prefixes.prefix import Match, Prefix
from control_plane.engine.scheduling import sharing
from control_plane.engine.scheduling.chunk import Chunk
from control_plane.engine.scheduling.preemption import victims_of_admission, victims_of_growth
from control_plane.engine.scheduling.queues import Queues
from control_plane.engine.state.sequence import Sequence
from control_plane.engine.state.sequence_memory import SequenceMemory


@dataclass(frozen=True)
class _Admission:
    """How a sequence gets its memory."""

    evicted: list[Prefix]
    preempted: list[Sequence]
    match: Match | None
    """What it continues from."""
    takes_over: bool
    """Whether it has the memory of `match`, not a copy."""


@dataclass
class Memory:
    """Gives memory to sequences, and takes it from others. Their queues follow."""

    kv_cache: SequenceMemory
    queues: Queues
    prefixes: PrefixCache
    num_preemptions: int = 0
    """Preemptions since the start."""

    def grow(self, chunk: Chunk) -> list[Sequence]:
        """Give a running sequence room for the chunk; returns the preempted sequences, perhaps itself."""
        pages = self.kv_cache.pages
        missing = pages.missing(chunk.sequence, chunk.end) - pages.num_free_pages
        for prefix in self._to_evict(pages.held, missing):
            missing -= pages.held(prefix)
            self.prefixes.evict(prefix)
        if missing > 0:
            # Otherwise a sequence alone could preempt itself, again and again, for what it has kept.
            missing -= sum(map(self.kv_cache.drop_kept, self._running()))
        victims, missing = self._taken_from_background(pages.held, missing)
        if missing > 0:
            victims += victims_of_growth(self.queues.holders(pages.held), missing)
        for victim in victims:
            self._preempt(victim)
        if chunk.sequence not in victims:
            pages.allocate(chunk.sequence, chunk.end)
        return victims

    def admit(self, sequence: Sequence) -> list[Sequence] | None:
        """Let a waiting sequence run; returns the preempted sequences, or None if it has to wait.

        It takes over what another has computed of the same prompt, or continues from what was kept.
        """
        source = self.queues.source(sequence)
        match = None if source else self.prefixes.find_among(sequence, self.queues.of(sequence).running)
        admission = self._admission(sequence, match)
        if admission is None and match:
            # What it could continue from may take memory that it needs.
            match, admission = None, self._admission(sequence, None)
        if admission is None:
            sequence.stalls = True
            return None
        for prefix in admission.evicted:
            self.prefixes.evict(prefix)
        for victim in admission.preempted:
            self._preempt(victim)
        self.queues.of(sequence).begin(sequence)
        if match and admission.takes_over:
            self.prefixes.take_over(match, sequence)
        self.kv_cache.pages.allocate(sequence, len(sequence.token_ids))
        if match and not admission.takes_over:
            self.prefixes.take(match, sequence)
        if source:
            sharing.take_over(sequence, source)
            self.kv_cache.copy(source, sequence, sequence.num_computed)
        return admission.preempted

    def keep(self, sequence: Sequence) -> None:
        """Keep what a running sequence has computed so far, if there is memory that no other one needs."""
        pages = self.kv_cache.pages
        missing = self.kv_cache.pages_to_keep(sequence) + self.queues.num_running - pages.num_free_pages
        evicted = self._to_evict(pages.held, missing)
        if missing <= sum(map(pages.held, evicted)):
            for prefix in evicted:
                self.prefixes.evict(prefix)
            self.kv_cache.keep(sequence)

    def hand_over(self, sequence: Sequence) -> None:
        """Let one that waits have the memory of a sequence that ends, if the prompt would be lost with it."""
        if sequence.prompt_key is None or not sharing.is_ready(sequence) or self.queues.source(sequence):
            return
        pages, queue = self.kv_cache.pages, self.queues.of(sequence)
        for heir in queue.waiting:
            inherits = self.queues.sharing.find_source(heir, [sequence]) is sequence
            if inherits and not pages.missing(sequence, len(heir.token_ids)):
                queue.begin(heir)
                pages.hand_over(sequence, heir)
                sharing.take_over(heir, sequence)
                return

    def _admission(self, sequence: Sequence, match: Match | None) -> _Admission | None:
        """How the sequence gets its memory; None if it gets none."""
        pages = self.kv_cache.pages
        wanted = pages.pages_for(len(sequence.token_ids))
        # One page for each running sequence stays free. Each may need one before another sequence ends, and
        # without them the next step would preempt what this one has admitted.
        missing = wanted + self.queues.num_running - pages.num_free_pages
        takes_over = match is not None and (match.is_whole or self._would_evict(match, missing))
        if takes_over and match:
            # What was kept besides stays.
            missing -= min(pages.held(match.source) - pages.extra(match.source), wanted)
        spared = match.source if match else None
        evicted = self._to_evict(pages.held, missing, spared)
        missing -= sum(map(pages.held, evicted))
        preempted = self._make_room(sequence, pages.held, wanted, missing)
        if preempted == [] and not evicted and not takes_over and not pages.num_free_lanes:
            # There are pages enough, but no lane: take one from the owner of most lanes.
            evicted = self._to_evict(lambda _: 1, 1, spared)
            preempted = self._make_room(sequence, lambda _: 1, wanted=1, missing=1 - len(evicted))
        return None if preempted is None else _Admission(evicted, preempted, match, takes_over)

    def _running(self) -> list[Sequence]:
        return [sequence for queue in self.queues.all().values() for sequence in queue.running]

    def _would_evict(self, match: Match, missing: int) -> bool:
        """Whether the match would be evicted for the sequence that could continue from it."""
        pages = self.kv_cache.pages
        evicted = self._to_evict(pages.held, missing)
        if not evicted and not pages.num_free_lanes:
            evicted = self._to_evict(lambda _: 1, 1)
        return match.source in evicted

    def _to_evict(
        self, held: Callable[[Any], int], missing: int, spared: Prefix | Sequence | None = None
    ) -> list[Prefix]:
        """The prefixes to evict so that `missing` of what is `held` become free, or all if that is less."""
        if missing <= 0:
            return []
        running = {owner: holder.share() for owner, holder in self.queues.holders(held).items()}
        return self.prefixes.to_evict(held, missing, running, self.queues.next_in_turn(), spared)

    def _make_room(
        self, sequence: Sequence, held: Callable[[Sequence], int], wanted: int, missing: int
    ) -> list[Sequence] | None:
        """The sequences to take from so that this one gets its share of a resource; None if it has to wait.

        `held` is the amount of the resource that a running sequence holds.
        """
        victims, missing = self._taken_from_background(held, missing)
        if missing <= 0:
            return victims
        owner = self.queues.owner(sequence)
        others = victims_of_admission(self.queues.holders(held), owner, sequence.weight, wanted, missing)
        return None if others is None else victims + others

    def _taken_from_background(
        self, held: Callable[[Sequence], int], missing: int
    ) -> tuple[list[Sequence], int]:
        """The sequences that give way for a resource, the newest first, and what is missing without them."""
        victims: list[Sequence] = []
        for sequence in self.queues.giving_way() if missing > 0 else ():
            if missing <= 0:
                break
            victims.append(sequence)
            missing -= held(sequence)
        return victims, missing

    def _preempt(self, sequence: Sequence) -> None:
        """Take the sequence's memory. It waits at the head of its queue, and is computed from its start."""
        self.queues.of(sequence).put_back(sequence)
        self.kv_cache.free(sequence)
        sequence.num_computed = 0
        self.num_preemptions += 1
