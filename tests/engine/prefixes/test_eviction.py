"""What is evicted, by hand and in traces of conversations against LRU and an optimum."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.engine.prefixes.eviction import Candidate, Floors, choose, worth


def candidate(
    name: str, owner: str, amount: int, priority: float, wanted: bool = False, weight: float = 1.0
) -> Candidate[str]:
    return Candidate(name, owner, weight, amount, priority, wanted)


@pytest.mark.parametrize(
    ("candidates", "shares", "missing", "chosen"),
    [
        pytest.param(
            [candidate("a", "x", 4, 2.0), candidate("b", "x", 4, 1.0)], {"x": 8}, 3, ["b"], id="least useful"
        ),
        pytest.param(
            [candidate("a", "x", 4, 1.0), candidate("b", "y", 4, 9.0)],
            {"x": 4, "y": 20},
            3,
            ["b"],
            id="of the owner with most",
        ),
        pytest.param(
            [candidate("a", "x", 4, 1.0), candidate("b", "y", 4, 9.0), candidate("c", "y", 4, 8.0)],
            {"x": 4, "y": 6},
            7,
            ["c", "a"],
            id="shares shrink",
        ),
        pytest.param(
            [candidate("a", "x", 4, 1.0, wanted=True), candidate("b", "y", 4, 9.0)],
            {"x": 90, "y": 4},
            3,
            ["b"],
            id="not just before its turn",
        ),
        pytest.param(
            [candidate("a", "x", 4, 1.0, wanted=True), candidate("b", "y", 4, 9.0)],
            {"x": 90, "y": 4},
            30,
            ["b", "a"],
            id="all, if it must be",
        ),
        pytest.param([candidate("a", "x", 4, 1.0)], {"x": 4}, 0, [], id="nothing is missing"),
    ],
)
def test_choice(
    candidates: list[Candidate[str]], shares: Mapping[str, float], missing: int, chosen: list[str]
) -> None:
    assert choose(candidates, shares, missing) == chosen


@given(
    st.lists(
        st.tuples(
            st.sampled_from("xyz"), st.integers(1, 9), st.floats(0, 100), st.booleans(), st.floats(0.1, 10)
        ),
        max_size=12,
    ),
    st.integers(0, 60),
)
def test_no_more_goes_than_is_missing(
    given_candidates: list[tuple[str, int, float, bool, float]], missing: int
) -> None:
    candidates = [
        candidate(str(number), owner, amount, priority, wanted, weight)
        for number, (owner, amount, priority, wanted, weight) in enumerate(given_candidates)
    ]
    amounts = {each.item: each.amount for each in candidates}
    chosen = choose(candidates, {}, missing)
    freed = sum(amounts[item] for item in chosen)
    assert len(set(chosen)) == len(chosen)
    assert freed >= min(missing, sum(amounts.values()))
    assert not chosen or freed - amounts[chosen[-1]] < missing


def test_an_owner_with_many_conversations_evicts_its_own() -> None:
    """A tenant of weight 1 floods the memory of 100 pages; one of weight 3 keeps up to 75 of them."""
    candidates = [candidate(f"few {n}", "few", 10, 0.0, weight=3.0) for n in range(7)]
    candidates += [candidate(f"many {n}", "many", 10, 99.0) for n in range(20)]
    chosen = choose(candidates, {"few": 70 / 3, "many": 200}, 170)
    assert sum(name.startswith("few") for name in chosen) == 0


@dataclass(frozen=True)
class Turn:
    """A prompt of a conversation, which continues from all before it."""

    conversation: int
    tokens: int


def turns(random: Random) -> Iterator[Turn]:
    """A trace: many conversations of one turn, and some that come back often, with pauses."""
    lengths: dict[int, int] = {}
    number = 0
    for _ in range(3000):
        if not lengths or random.random() < 0.5:
            number += 1
            lengths[number] = random.randrange(50, 2000)
            # Half of them end at once.
            if random.random() < 0.5:
                yield Turn(number, lengths.pop(number))
                continue
        conversation = random.choice(list(lengths)[-12:])
        yield Turn(conversation, lengths[conversation])
        lengths[conversation] += random.randrange(20, 300)
        if random.random() < 0.1:
            del lengths[conversation]


Victim = Callable[[dict[int, int], int], int]
"""Of conversations with their tokens in memory, the one to evict at a time."""


def saved(trace: list[Turn], room: int, victim: Victim, used: Callable[[int, int], None]) -> int:
    """The tokens of a trace that are there when they are needed."""
    kept: dict[int, int] = {}
    total = 0
    for time, turn in enumerate(trace):
        total += kept.pop(turn.conversation, 0)
        used(turn.conversation, turn.tokens)
        while kept and sum(kept.values()) + turn.tokens > room:
            del kept[victim(kept, time)]
        kept[turn.conversation] = turn.tokens
    return total


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("room", [4000, 12000])
def test_traces(seed: int, room: int) -> None:
    """More tokens are saved than by LRU: half of those by one who knows the future, or more."""
    trace = list(turns(Random(seed)))
    last_used: dict[int, int] = {}
    clock = iter(range(len(trace)))
    lru = saved(
        trace,
        room,
        lambda kept, _: min(kept, key=last_used.__getitem__),
        lambda conversation, _: last_used.__setitem__(conversation, next(clock)),
    )

    floors, uses, rated = Floors(), dict.fromkeys((turn.conversation for turn in trace), 0), {}

    def used(conversation: int, tokens: int) -> None:
        uses[conversation] += 1
        rated[conversation] = floors["x"] + worth(uses[conversation], tokens, -(-tokens // 16))

    def least(kept: dict[int, int], _: int) -> int:
        candidates = [candidate(str(each), "x", 1, rated[each]) for each in kept]
        (chosen,) = choose(candidates, {}, 1)
        floors.evicted("x", rated[int(chosen)])
        return int(chosen)

    ours = saved(trace, room, least, used)

    following: dict[int, list[int]] = {}
    for time, turn in enumerate(trace):
        following.setdefault(turn.conversation, []).append(time)

    def furthest(kept: dict[int, int], time: int) -> int:
        def again(conversation: int) -> float:
            return next((each for each in following[conversation] if each > time), float("inf"))

        return max(kept, key=again)

    best = saved(trace, room, furthest, lambda *_: None)
    assert ours >= 1.02 * lru
    assert ours >= 0.48 * best
