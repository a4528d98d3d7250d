"""The division of memory among functions: its bounds always hold, and in the long run use decides."""

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.autoscaling.footprint import BlockSize
from control_plane.autoscaling.shares import MOVED_PART, Use, divide

NOTHING = Use(share=0, resident=0, reads=0.0)


@st.composite
def situations(draw: st.DrawFn) -> tuple[int, dict[str, BlockSize], dict[str, Use]]:
    """A pool, blocks, and functions' use with shares of any size."""
    blocks, use = {}, {}
    for number in range(draw(st.integers(1, 6))):
        experts = draw(st.integers(1, 60))
        blocks[f"f{number}"] = BlockSize(experts, min(draw(st.integers(1, 4)), experts))
        share = draw(st.integers(0, 80))
        resident = draw(st.integers(0, 80))
        use[f"f{number}"] = Use(share, resident, draw(st.floats(0, 1000)))
    return draw(st.integers(-10, 400)), blocks, use


@given(situations())
def test_the_bounds_hold(situation: tuple[int, dict[str, BlockSize], dict[str, Use]]) -> None:
    pool, blocks, use = situation
    shares = divide(pool, blocks, use)
    assert shares.keys() == use.keys()
    least = sum(block.least for block in blocks.values())
    assert sum(shares.values()) <= max(pool, least)
    for name, share in shares.items():
        assert blocks[name].least <= share <= blocks[name].experts
    if pool <= least:
        assert shares == {name: block.least for name, block in blocks.items()}


@given(situations())
def test_only_a_bounded_part_moves_at_a_time(
    situation: tuple[int, dict[str, BlockSize], dict[str, Use]],
) -> None:
    pool, blocks, use = situation
    settled = divide(pool, blocks, {name: Use(of.share, of.resident, 0.0) for name, of in use.items()})
    used = {name: Use(settled[name], of.resident, of.reads) for name, of in use.items()}
    moved = divide(pool, blocks, used)
    if sum(settled.values()) <= pool:
        gained = sum(max(moved[name] - settled[name], 0) for name in moved)
        assert gained <= max(1, pool // MOVED_PART) + max(pool - sum(settled.values()), 0)


@pytest.mark.parametrize(
    ("pool", "sizes", "shares"),
    [
        (100, [40, 40], [40, 40]),
        (60, [60, 30, 30], [30, 15, 15]),
        (40, [20, 20, 20, 20], [10, 10, 10, 10]),
        (7, [20, 20, 20], [3, 2, 2]),
        (3, [20, 20], [2, 2]),
        (50, [100, 2], [48, 2]),
        (-5, [20, 1], [2, 1]),
    ],
)
def test_first_shares_are_in_proportion_to_the_blocks(pool: int, sizes: list[int], shares: list[int]) -> None:
    blocks = {f"f{number}": BlockSize(size, min(2, size)) for number, size in enumerate(sizes)}
    assert list(divide(pool, blocks, dict.fromkeys(blocks, NOTHING)).values()) == shares


def divided(pool: int, **use: tuple[int, int, float]) -> dict[str, int]:
    """The next shares of functions with (share, resident, reads), a block of 20 experts and a least of 2."""
    return divide(
        pool, {name: BlockSize(20, 2) for name in use}, {name: Use(*of) for name, of in use.items()}
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # Both are full, and one has more reads per expert of its share.
        ({"a": (10, 10, 30.0), "b": (10, 10, 5.0)}, {"a": 11, "b": 9}),
        # The same with equal reads and a smaller share.
        ({"a": (4, 4, 10.0), "b": (16, 16, 10.0)}, {"a": 5, "b": 15}),
        # Equal, or nearly equal: nothing moves.
        ({"a": (10, 10, 10.0), "b": (10, 10, 10.0)}, {"a": 10, "b": 10}),
        ({"a": (10, 10, 11.0), "b": (10, 10, 9.5)}, {"a": 10, "b": 10}),
        # No function reads.
        ({"a": (10, 10, 0.0), "b": (10, 2, 0.0)}, {"a": 10, "b": 10}),
        # The reading function is still filling its share.
        ({"a": (10, 3, 30.0), "b": (10, 10, 0.0)}, {"a": 10, "b": 10}),
        # The other function has only its least.
        ({"a": (10, 10, 30.0), "b": (2, 2, 0.0)}, {"a": 10, "b": 2}),
        # The reading function has its whole block already.
        ({"a": (20, 20, 30.0), "b": (5, 5, 0.0)}, {"a": 20, "b": 5}),
        # Of functions without reads, the one with the most unused memory gives.
        ({"a": (10, 10, 9.0), "b": (10, 10, 0.0), "c": (10, 3, 0.0)}, {"a": 11, "b": 10, "c": 9}),
    ],
)
def test_experts_move_to_the_function_with_more_reads_per_expert(
    before: dict[str, tuple[int, int, float]], after: dict[str, int]
) -> None:
    assert divided(sum(share for share, _, _ in before.values()), **before) == after


def test_free_memory_is_spread_over_the_functions_that_lack_it() -> None:
    assert divided(30, a=(10, 10, 0.0), b=(16, 16, 0.0)) == {"a": 13, "b": 17}


def test_a_smaller_pool_takes_the_same_part_from_all() -> None:
    assert divided(20, a=(18, 18, 9.0), b=(10, 10, 0.0)) == {"a": 12, "b": 8}


def test_small_changes_of_the_pool_move_nothing_back_and_forth() -> None:
    blocks = {name: BlockSize(100, 2) for name in "ab"}
    shares = {"a": 50, "b": 50}
    seen = []
    for pool in (100, 99, 100, 99, 100, 99):
        shares = divide(pool, blocks, {name: Use(share, share, 1.0) for name, share in shares.items()})
        seen.append(tuple(shares.values()))
    assert len(set(seen[1:])) == 1


@dataclass
class Workload:
    """Functions with experts of different popularity. They read called experts that they do not hold."""

    calls: Mapping[str, float]
    """Experts that are called per second, by function."""
    hot: Mapping[str, int]
    """The number of experts that get nearly all calls, by function."""
    blocks: Mapping[str, BlockSize]

    def reads(self, name: str, share: int) -> float:
        """Experts read per second. The hit rate grows with the share, steeply for the hot experts."""
        hot = min(share / self.hot[name], 1.0)
        rest = max(share - self.hot[name], 0) / max(self.blocks[name].experts - self.hot[name], 1)
        missed: float = 1 - 0.9 * hot**0.7 - 0.1 * rest
        return self.calls[name] * missed

    def run(self, pool: int, seconds: int) -> tuple[list[dict[str, int]], list[float]]:
        """The shares and the sum of all reads, second by second."""
        use = dict.fromkeys(self.blocks, NOTHING)
        history, reads = [], []
        for _ in range(seconds):
            shares = divide(pool, self.blocks, use)
            found = {name: self.reads(name, share) for name, share in shares.items()}
            use = {
                name: Use(shares[name], shares[name], of.reads + (found[name] - of.reads) * 0.18)
                for name, of in use.items()
            }
            history.append(shares)
            reads.append(sum(found.values()))
        return history, reads


def workload(calls: list[float], hot: list[int]) -> Workload:
    names = [f"f{number}" for number in range(len(calls))]
    blocks = {name: BlockSize(60, 2) for name in names}
    return Workload(dict(zip(names, calls, strict=True)), dict(zip(names, hot, strict=True)), blocks)


def test_shares_move_to_where_they_save_reads_and_settle_there() -> None:
    history, reads = workload([100.0, 20.0, 5.0, 1.0], [40, 30, 20, 50]).run(100, 300)
    first, last = history[0], history[-1]
    assert list(first.values()) == [25, 25, 25, 25]
    assert last["f0"] > last["f1"] > last["f2"] >= last["f3"]
    assert last["f0"] >= 45
    assert reads[-1] < 0.5 * reads[0]
    # Hardly anything moves in the last hundred seconds.
    for name in last:
        late = [shares[name] for shares in history[200:]]
        assert max(late) - min(late) <= 2


def test_equal_functions_keep_equal_shares() -> None:
    history, _ = workload([50.0] * 4, [30] * 4).run(100, 100)
    assert all(shares == history[0] for shares in history)


def test_shares_follow_the_load() -> None:
    day, night = workload([100.0, 2.0], [50, 50]), workload([2.0, 100.0], [50, 50])
    by_day, _ = day.run(60, 200)
    by_night, _ = night.run(60, 200)
    assert by_day[-1]["f0"] == by_night[-1]["f1"] > 45
