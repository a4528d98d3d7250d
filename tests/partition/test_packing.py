"""Packing is checked by tables, by properties, and with the recorded routing of the demo model."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.partition.packing import pack, pairs_inside
from tests.support.paths import DEMO_ROUTING

Routing = list[set[int]]


def counts(tokens: Routing, num_experts: int) -> tuple[np.ndarray, np.ndarray]:
    """The counts `use` [E] and `together` [E, E] of a list of tokens, each given as the experts it used."""
    chosen = np.array([[expert in token for expert in range(num_experts)] for token in tokens], np.int64)
    together = chosen.T @ chosen
    use = together.diagonal().copy()
    np.fill_diagonal(together, 0)
    return use, together


def calls(tokens: Routing, groups: list[tuple[int, ...]]) -> int:
    """The number of function calls of all tokens, with a function for each group."""
    return sum(not token.isdisjoint(group) for token in tokens for group in groups)


def consecutive(num_experts: int, size: int) -> list[tuple[int, ...]]:
    return [tuple(range(start, min(start + size, num_experts))) for start in range(0, num_experts, size)]


@pytest.mark.parametrize(
    ("tokens", "num_experts", "size", "wanted"),
    [
        ([{0, 2}, {1, 3}, {0, 2}], 4, 2, [(0, 2), (1, 3)]),
        ([{3, 5}] * 9 + [{1, 4}] * 4 + [{0, 2}], 6, 2, [(3, 5), (1, 4), (0, 2)]),
        ([{0}] * 3 + [{1}] + [{2}] * 2 + [{3}] * 3, 4, 2, [(0, 3), (1, 2)]),
        ([{4, 1}] * 3 + [{0, 2}] * 2, 5, 2, [(1, 4), (0, 2), (3,)]),
        ([{0, 1}], 2, 2, [(0, 1)]),
        ([{0, 1}, {1, 2}, {1, 2}], 3, 1, [(1,), (2,), (0,)]),
    ],
    ids=["pairs", "hottest first", "hot with hot", "the smaller one last", "one group", "groups of one"],
)
def test_experts_that_are_used_together_share_a_function(
    tokens: Routing, num_experts: int, size: int, wanted: list[tuple[int, ...]]
) -> None:
    assert pack(*counts(tokens, num_experts), size) == wanted


def test_exchanges_improve_the_greedy_start() -> None:
    """The greedy start groups the two hottest experts, though each fits better with another one."""
    tokens = [{0, 1}] * 5 + [{0, 2}] * 4 + [{1, 3}] * 4
    groups = pack(*counts(tokens, 4), 2)
    assert calls(tokens, groups) == min(
        calls(tokens, [(0, other), tuple({1, 2, 3} - {other})]) for other in (1, 2, 3)
    )


routings = st.integers(1, 9).flatmap(
    lambda n: st.tuples(st.lists(st.sets(st.integers(0, n - 1), min_size=1), min_size=1), st.just(n))
)


@given(routings, st.data())
def test_every_packing_is_a_partition_with_no_fewer_pairs(
    routing: tuple[Routing, int], data: st.DataObject
) -> None:
    tokens, num_experts = routing
    size = data.draw(st.integers(1, num_experts))
    use, together = counts(tokens, num_experts)
    groups = pack(use, together, size)
    assert sorted(expert for group in groups for expert in group) == list(range(num_experts))
    assert [len(group) for group in groups] == [len(group) for group in consecutive(num_experts, size)]
    assert all(list(group) == sorted(group) for group in groups)
    heat = [use[list(group)].sum() for group in groups if len(group) == size]
    assert heat == sorted(heat, reverse=True)
    assert inside(groups, together) >= inside(consecutive(num_experts, size), together)
    assert pack(use, together, size) == groups


@given(st.lists(st.sets(st.integers(0, 7), min_size=2, max_size=2), min_size=1), st.integers(1, 8))
def test_two_experts_a_token_never_cost_more_calls(tokens: Routing, size: int) -> None:
    groups = pack(*counts(tokens, 8), size)
    assert calls(tokens, groups) <= calls(tokens, consecutive(8, size))


@pytest.mark.parametrize("size", [2, 4, 6, 8])
def test_the_demo_model_calls_fewer_functions(size: int) -> None:
    """Packing by one half of the recorded sequences saves calls in the other half."""
    with np.load(DEMO_ROUTING) as arrays:
        experts, even = arrays["experts"], arrays["sequence"] // 3 % 2 == 0
    before = after = 0
    for layer in range(experts.shape[1]):
        learned, asked = ([set(row) for row in experts[rows, layer].tolist()] for rows in (even, ~even))
        groups = pack(*counts(learned, 16), size)
        assert calls(learned, groups) < calls(learned, consecutive(16, size))
        before += calls(asked, consecutive(16, size))
        after += calls(asked, groups)
    calls_per_token = f"{before / len(asked):.2f} calls per token, packed {after / len(asked):.2f}"
    print(f"{size} experts per function: {calls_per_token}")
    assert after < 0.97 * before


def inside(groups: list[tuple[int, ...]], together: np.ndarray) -> int:
    group_of = np.zeros(len(together), np.int64)
    for number, group in enumerate(groups):
        group_of[list(group)] = number
    return pairs_inside(group_of, together)
