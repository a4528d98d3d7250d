"""Keeps prefixes in memory, finds the one that a sequence can continue from, and evicts them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from control_plane.engine.prefixes.eviction import Candidate, Floors, choose, worth
from control_plane.engine.prefixes.prefix import (
    LEAST_TOKENS,
    Match,
    Prefix,
    TokenIds,
    as_token_ids,
    longest_match,
    num_common,
)
from control_plane.engine.state.sequence import Sequence
from control_plane.engine.state.sequence_memory import SequenceMemory

Key = tuple[str, str]
"""Who may see a prefix: the tenant, and the salt."""


@dataclass
class PrefixCache:
    """Prefixes hold lanes and pages of the sequences' memory that no running sequence needs."""

    memory: SequenceMemory
    owner: Callable[[Sequence], str]
    """Whose memory a sequence's counts for."""
    is_on: bool = True
    """Otherwise it keeps nothing."""
    num_evicted: int = 0
    """Prefixes that were evicted since the start."""
    _prefixes: dict[Key, list[Prefix]] = field(default_factory=dict)
    _floors: Floors = field(default_factory=Floors)
    _matches: dict[Sequence, Match | None] = field(default_factory=dict)
    """Of sequences that wait, until a prefix comes or goes."""

    @property
    def num_pages(self) -> int:
        """Pages that prefixes hold."""
        return sum(self.memory.pages.held(prefix) for prefix in self._all())

    @property
    def num_prefixes(self) -> int:
        """Prefixes in memory."""
        return sum(map(len, self._prefixes.values()))

    def keep(self, sequence: Sequence) -> None:
        """Make what a sequence has computed a prefix, or free it. It must not run any more."""
        self._matches.pop(sequence, None)
        if not self.memory.pages.holds(sequence):
            return
        # After an error, a state may be that of a step which was not committed.
        length = self.memory.usable(sequence, sequence.num_computed)
        if not self.is_on or length < LEAST_TOKENS:
            self.memory.free(sequence)
            return
        tokens = as_token_ids(sequence.token_ids[:length])
        prefix = Prefix(
            sequence.tenant,
            sequence.cache_salt,
            self.owner(sequence),
            sequence.weight,
            tokens,
            sequence.prefix_uses + 1,
        )
        self.memory.pages.hand_over(sequence, prefix)
        self.memory.trim(prefix, len(tokens))
        self._add(prefix)

    def find(self, sequence: Sequence) -> Match | None:
        """The prefix in memory that the sequence can continue from."""
        if sequence not in self._matches:
            self._matches[sequence] = self._longest(sequence, ())
        return self._matches[sequence]

    def find_among(self, sequence: Sequence, running: Iterable[Sequence]) -> Match | None:
        """As `find`, or one of these running sequences, if it has more."""
        return self._longest(sequence, running)

    def take(self, match: Match, sequence: Sequence) -> None:
        """Give the sequence what a match has, by a copy. It must hold memory for it."""
        self.memory.copy(match.source, sequence, match.length)
        if isinstance(match.source, Prefix):
            match.source.uses += 1
            match.source.floor = self._floors[match.source.owner]
            match.source.num_shared = max(match.source.num_shared, match.length)
            sequence.prefix_uses = match.source.uses
        self._taken(match, sequence)

    def take_over(self, match: Match, sequence: Sequence) -> None:
        """Give the sequence the memory of a match, whose source must be a prefix. That is then gone."""
        assert isinstance(match.source, Prefix)
        self.memory.pages.hand_over(match.source, sequence)
        self.memory.trim(sequence, match.length)
        self._forget(match.source)
        sequence.prefix_uses = match.source.uses
        self._taken(match, sequence)

    def to_evict(
        self,
        held: Callable[[Prefix], int],
        missing: int,
        running: Mapping[str, float],
        waiting: Iterable[Sequence],
        spared: Prefix | Sequence | None,
    ) -> list[Prefix]:
        """The prefixes to evict so that `missing` of a resource become free, or all if they hold less.

        `held` is what one holds of it. `running` is what owners' sequences do, divided by their weights. What
        `waiting` sequences could continue from goes last, and `spared` does not.
        """
        sources = {match.source for sequence in waiting if (match := self.find(sequence))}
        shares = dict(running)
        for prefix in self._all():
            shares[prefix.owner] = shares.get(prefix.owner, 0.0) + held(prefix) / prefix.weight
        candidates = [
            Candidate(each, each.owner, each.weight, held(each), self._priority(each), each in sources)
            for each in self._all()
            if each is not spared
        ]
        return choose(candidates, shares, missing)

    def evict(self, prefix: Prefix) -> None:
        """Free a prefix's memory."""
        self._floors.evicted(prefix.owner, self._priority(prefix))
        self._forget(prefix)
        self.memory.free(prefix)
        self._floors.retain({each.owner for each in self._all()})
        self.num_evicted += 1

    def _all(self) -> list[Prefix]:
        return [prefix for prefixes in self._prefixes.values() for prefix in prefixes]

    def _longest(self, sequence: Sequence, running: Iterable[Sequence]) -> Match | None:
        if not self.is_on or sequence.params.prompt_logprobs:
            # Log-probabilities of a prompt need all of its rows.
            return None
        candidates: list[tuple[Prefix | Sequence, TokenIds]] = [
            (prefix, prefix.token_ids) for prefix in self._prefixes.get(_key(sequence), ())
        ]
        candidates += [
            (other, as_token_ids(other.token_ids[: other.num_computed]))
            for other in running
            if _key(other) == _key(sequence)
        ]
        tokens = as_token_ids(sequence.token_ids)
        return longest_match(tokens, candidates, self.memory.usable)

    def _add(self, prefix: Prefix) -> None:
        """Add a prefix; one that has no tokens beyond another's is not needed."""
        others = self._prefixes.setdefault((prefix.tenant, prefix.salt), [])
        for other in others.copy():
            common = num_common(prefix.token_ids, other.token_ids)
            for each in (prefix, other):
                each.num_shared = max(each.num_shared, common)
            if self._has_all_of(prefix, other, common):
                prefix.uses = max(prefix.uses, other.uses)
                others.remove(other)
                self.memory.free(other)
            elif self._has_all_of(other, prefix, common):
                self.memory.free(prefix)
                return
        others.append(prefix)
        prefix.floor = self._floors[prefix.owner]
        self._matches.clear()

    def _has_all_of(self, prefix: Prefix, other: Prefix, common: int) -> bool:
        """Whether whatever could continue from the other prefix can from this one."""
        is_part = common == len(other.token_ids)
        return is_part and (self.memory.keeps_prefixes or common == len(prefix.token_ids))

    def _priority(self, prefix: Prefix) -> float:
        """The smaller, the sooner it is evicted among those of its owner."""
        saved = len(prefix.token_ids) - prefix.num_shared
        return prefix.floor + worth(prefix.uses, saved, self.memory.pages.held(prefix))

    def _taken(self, match: Match, sequence: Sequence) -> None:
        sequence.num_computed = match.length
        if sequence.started is None:
            sequence.num_cached = match.length
        sequence.num_charged = max(sequence.num_charged, match.length)
        self._matches.pop(sequence, None)

    def _forget(self, prefix: Prefix) -> None:
        key = prefix.tenant, prefix.salt
        others = self._prefixes[key]
        others.remove(prefix)
        for each in others:
            common = (num_common(each.token_ids, other.token_ids) for other in others if other is not each)
            each.num_shared = max(common, default=0)
        if not others:
            del self._prefixes[key]
        self._matches.clear()


def _key(sequence: Sequence) -> Key:
    return sequence.tenant, sequence.cache_salt
