"""Random conversations: what a sequence continues from is what it would have computed itself.

A stand-in for a model keeps in memory, for each token, a number that depends on the tenant, the salt and all
tokens up to it. Each step finds those of the tokens before it as the same sequence alone would have them.
"""

from collections import Counter
from dataclasses import dataclass, field
from random import Random

import numpy as np
import pytest

from control_plane.engine.model.ragged_batch import cache_rows, spans_of
from control_plane.engine.scheduling.chunk import Chunk
from control_plane.engine.scheduling.scheduler import Scheduler
from control_plane.engine.state.hybrid_cache import HybridCache
from control_plane.engine.state.kv_cache import KVCache
from control_plane.engine.state.sequence import SamplingParams, Sequence
from tests.support.scheduling import evict_all, make_scheduler

TENANTS = ("a", "b", "c")
CONVERSATIONS = 10_000


def numbers(sequence: Sequence, end: int) -> list[float]:
    """What the stand-in keeps for each of the first tokens."""
    state = hash((sequence.tenant, sequence.cache_salt)) & 0xFFFFF
    found = []
    for token in sequence.token_ids[:end]:
        state = (state * 31 + token + 1) & 0xFFFFF
        found.append(float(state))
    return found


@dataclass
class Conversations:
    """Sequences come, run and end. Their answers begin later prompts, whole, cut or changed."""

    random: Random
    scheduler: Scheduler
    texts: dict[str, list[list[int]]] = field(default_factory=dict)
    """What each tenant has had."""
    running: list[Sequence] = field(default_factory=list)
    computed: Counter[str] = field(default_factory=Counter)
    """Tokens by how they came."""

    def come(self) -> None:
        """Add a sequence: a new conversation, or one that goes on."""
        random, tenant = self.random, self.random.choice(TENANTS)
        earlier = self.texts.setdefault(tenant, [[]])
        text = random.choice(earlier[-6:]).copy()
        match random.random():
            case chance if chance < 0.15:
                text = []
            case chance if chance < 0.35:
                text = text[: random.randrange(len(text) + 1)]
            case chance if chance < 0.45 and text:
                text[random.randrange(len(text))] = random.randrange(9)
        text = [*text, *(random.randrange(9) for _ in range(random.randrange(1, 40)))][-300:]
        sequence = Sequence("", tenant, text, SamplingParams(random.randrange(1, 12)))
        sequence.cache_salt = random.choice(["", "", "", "salt"])
        sequence.stops = tuple(sorted(random.sample(range(1, len(text) + 1), min(2, len(text)))))
        sequence.background = random.random() < 0.1
        sequences = [sequence]
        if random.random() < 0.1:
            sequence.prompt_key = object()
            sequences.append(
                Sequence("", tenant, text.copy(), sequence.params, prompt_key=sequence.prompt_key)
            )
            sequences[1].cache_salt, sequences[1].background = sequence.cache_salt, sequence.background
            sequences[1].stops = sequence.stops
        for each in sequences:
            self.scheduler.add(each)
            self.running.append(each)

    def step(self) -> None:
        """Compute a step, in which what is before each chunk must be there. Some steps fail."""
        cache = self.scheduler.kv_cache
        assert isinstance(cache, KVCache)
        batch = self.scheduler.schedule()
        if not batch:
            assert not self.running
            return
        spans = spans_of(batch, cache.pages)
        for chunk, span in zip(batch, spans, strict=True):
            keys, values = cache.read(0, span.lane, chunk.start)
            expected = numbers(chunk.sequence, chunk.start)
            assert keys[0, :, 0].tolist() == expected
            assert values[0, :, 1].tolist() == expected
            self.check_state(chunk, span.lane)
        rows = [number for chunk in batch for number in numbers(chunk.sequence, chunk.end)[chunk.start :]]
        content = np.broadcast_to(np.array(rows, np.float32)[:, None, None], (len(rows), 1, 64))
        cache.write(0, cache_rows(spans), content, content)
        if self.random.random() < 0.05:
            return
        self.commit_states(batch)
        self.scheduler.commit(batch)
        for chunk in batch:
            self.computed["computed"] += chunk.length
            if chunk.is_last:
                self.answer(chunk)
        self.check_memory()

    def check_state(self, chunk: Chunk, lane: int) -> None:
        """The state before a chunk must be that of its tokens; the state after it becomes the lane's."""
        cache = self.scheduler.kv_cache
        if isinstance(cache, HybridCache):
            states, (places,) = cache.states, cache.states.arrays
            source = states.source(lane, chunk.start)
            if source is not None:
                assert places[source].tolist() == numbers(chunk.sequence, chunk.start)[-1:]
            places[states.target(lane)] = numbers(chunk.sequence, chunk.end)[-1:]

    def commit_states(self, batch: list[Chunk]) -> None:
        cache = self.scheduler.kv_cache
        if isinstance(cache, HybridCache):
            for chunk in batch:
                cache.states.commit(cache.pages.lane(chunk.sequence), chunk.end)

    def answer(self, chunk: Chunk) -> None:
        """Add a token; end the sequence with its answer."""
        sequence = chunk.sequence
        sequence.append(int(numbers(sequence, len(sequence.token_ids))[-1]) % 9, frozenset())
        if sequence.finish_reason:
            self.end(sequence)

    def end(self, sequence: Sequence) -> None:
        """End a sequence, whether it is complete or not."""
        self.running.remove(sequence)
        self.scheduler.remove(sequence)
        self.texts[sequence.tenant].append(sequence.token_ids)
        self.computed["cached"] += sequence.num_cached

    def check_memory(self) -> None:
        """All pages and lanes are free, held by a sequence, or kept."""
        pages, prefixes = self.scheduler.kv_cache.pages, self.scheduler.prefixes
        assert pages.num_free_pages >= 0
        held = sum(pages.held(sequence) for sequence in self.running)
        assert pages.num_free_pages + held + prefixes.num_pages == pages.num_pages
        lanes = sum(pages.holds(sequence) for sequence in self.running)
        assert pages.num_free_lanes + lanes + prefixes.num_prefixes == pages.num_lanes


@pytest.mark.parametrize(
    ("num_pages", "num_lanes", "keeps_prefixes", "least"),
    [
        (60, 20, True, 0.1),
        (400, 40, True, 0.3),
        (60, 5, True, 0.1),
        (25, 20, True, 0.03),
        (60, 20, False, 0.005),
        (21, 20, False, 0.0),
    ],
    ids=["some memory", "much memory", "few lanes", "little memory", "states", "few states"],
)
def test_a_sequence_continues_from_what_it_would_have_computed(
    num_pages: int, num_lanes: int, keeps_prefixes: bool, least: float
) -> None:
    scheduler = make_scheduler(32, 4, num_pages, num_lanes, prefix_cache=True, keeps_prefixes=keeps_prefixes)
    run = Conversations(Random(num_pages + num_lanes), scheduler)
    come = CONVERSATIONS // 5
    while come or run.running:
        if come and run.random.random() < 0.4:
            run.come()
            come -= 1
        if run.running and run.random.random() < 0.03:
            run.end(run.random.choice(run.running))
        run.step()
    assert run.computed["cached"] > least * run.computed["computed"]
    evict_all(scheduler)
    pages = scheduler.kv_cache.pages
    assert (pages.num_free_pages, pages.num_free_lanes) == (pages.num_pages, pages.num_lanes)
