"""The eviction policy on the demo model's recorded routing, between plain LRU and Belady's optimum.

`pytest -s tests/functions/expert/test_eviction.py -k beats` prints the share of experts found in memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pytest

from control_plane.partition.granularity import Granularity, default_granularity
from functions.expert.eviction import NextUse
from tests.support.paths import DEMO_ROUTING

pytestmark = pytest.mark.slow

LAYERS, EXPERTS = 6, 16
SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
STEPS = 150
CUTS = {
    "whole model": Granularity(EXPERTS, LAYERS),
    "3 layers": Granularity(8, 3),
    "a layer": default_granularity(EXPERTS, LAYERS),
    "half a layer": Granularity(8, 1),
}
TIE = 0.01
"""If Belady finds at most this share more experts than LRU, NextUse need only be as good as LRU."""


@dataclass(frozen=True)
class Call:
    """One call of a function. `experts` are ascending positions in its block."""

    layer: int
    experts: np.ndarray
    rows_of: np.ndarray
    rows: int


class Policy(Protocol):
    def record(self, layer: int, experts: np.ndarray, rows_of: np.ndarray, rows: int) -> None: ...

    def victim(self, candidates: np.ndarray) -> int: ...


class LeastRecentlyUsed:
    def __init__(self, layer_of: np.ndarray, calls: Sequence[Call]) -> None:
        self._used = np.zeros(len(layer_of), np.int64)
        self._calls = 0

    def record(self, layer: int, experts: np.ndarray, rows_of: np.ndarray, rows: int) -> None:
        self._calls += 1
        self._used[experts] = self._calls

    def victim(self, candidates: np.ndarray) -> int:
        return int(candidates[self._used[candidates].argmin()])


class LeastFrequentlyUsed(LeastRecentlyUsed):
    def record(self, layer: int, experts: np.ndarray, rows_of: np.ndarray, rows: int) -> None:
        self._used[experts] += rows_of


class Belady:
    """Knows the future, and drops the expert whose next use comes last."""

    def __init__(self, layer_of: np.ndarray, calls: Sequence[Call]) -> None:
        self._next_use = np.full(len(layer_of), len(calls))
        following = self._next_use.copy()
        self._following: list[np.ndarray] = []
        """For each future call, the last first: the number of the call that uses each of its experts next."""
        for number in reversed(range(len(calls))):
            self._following.append(following[calls[number].experts])
            following[calls[number].experts] = number

    def record(self, layer: int, experts: np.ndarray, rows_of: np.ndarray, rows: int) -> None:
        self._next_use[experts] = self._following.pop()

    def victim(self, candidates: np.ndarray) -> int:
        return int(candidates[self._next_use[candidates].argmax()])


MakePolicy = Callable[[np.ndarray, Sequence[Call]], Policy]
POLICIES: dict[str, MakePolicy] = {
    "LRU": LeastRecentlyUsed,
    "LFU": LeastFrequentlyUsed,
    "NextUse": lambda layer_of, calls: NextUse(layer_of),
    "Belady": Belady,
}


@dataclass(frozen=True)
class Recording:
    """Routing of the demo model, written by scripts/record_routing.py."""

    experts: np.ndarray
    sequence: np.ndarray
    domain: np.ndarray
    generated: np.ndarray

    def single(self) -> list[np.ndarray]:
        """Steps of one row, for one sequence of each domain after the other."""
        sequences = [np.flatnonzero(self.generated & (self.sequence == number)) for number in range(3)]
        return [self.experts[row][None] for rows in sequences for row in rows[: STEPS // 3]]

    def tenants(self) -> list[np.ndarray]:
        """Steps of three rows, one of each domain."""
        rows = [np.flatnonzero(self.generated & (self.domain == domain)) for domain in range(3)]
        return [self.experts[list(step)] for step in zip(*rows, strict=False)][:STEPS]

    def prefills(self) -> list[np.ndarray]:
        """The steps of `tenants`, with chunks of long prompts among them."""
        prompts = self.experts[~self.generated]
        steps = self.tenants()
        for number, start in enumerate(range(0, 600, 100)):
            steps.insert(25 * (number + 1), prompts[start : start + 100])
        return steps[:STEPS]


@pytest.fixture(scope="module")
def recording() -> Recording:
    with np.load(DEMO_ROUTING) as arrays:
        return Recording(**arrays)


def functions_calls(
    steps: Sequence[np.ndarray], granularity: Granularity
) -> list[tuple[np.ndarray, list[Call]]]:
    """For each function, the layer of each of its positions, and its calls."""
    functions = []
    for layers, experts in granularity.cut(EXPERTS, range(LAYERS)):
        calls = []
        for step in steps:
            for layer, chosen in enumerate(step[:, layers].swapaxes(0, 1)):
                mine = np.isin(chosen, experts)
                used, rows_of = np.unique(chosen[mine], return_counts=True)
                positions = used.astype(np.int64) - experts[0] + layer * len(experts)
                if len(used):
                    calls.append(Call(layer, positions, rows_of, int(mine.any(axis=1).sum())))
        functions.append((np.repeat(np.arange(len(layers)), len(experts)), calls))
    return functions


def hits(policy: Policy, calls: Sequence[Call], experts: int, capacity: int) -> int:
    """Counts experts in memory when they are called. A call never drops experts that it uses itself."""
    resident = np.zeros(experts, bool)
    found = held = 0
    for call in calls:
        policy.record(call.layer, call.experts, call.rows_of, call.rows)
        missing = call.experts[~resident[call.experts]]
        found += len(call.experts) - len(missing)
        idle = resident.copy()
        idle[call.experts] = False
        for expert in missing:
            if held < capacity:
                held += 1
            elif idle.any():
                victim = policy.victim(np.flatnonzero(idle))
                resident[victim] = idle[victim] = False
            else:
                break
            resident[expert] = True
    return found


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("mix", ["single", "tenants", "prefills"])
def test_next_use_beats_lru_at_every_size(recording: Recording, mix: str, cut: str) -> None:
    functions = functions_calls(getattr(recording, mix)(), CUTS[cut])
    total = sum(len(call.experts) for _, calls in functions for call in calls)
    for share in SHARES:
        found = {name: found_of(make, functions, share) for name, make in POLICIES.items()}
        rates = "  ".join(f"{name} {count / total:6.1%}" for name, count in found.items())
        distance = (found["Belady"] - found["NextUse"]) / total
        print(f"{mix:9}{cut:12}{share:4.0%}  {rates}  distance to Belady {distance:5.1%}")
        assert found["NextUse"] <= found["Belady"]
        if found["Belady"] - found["LRU"] <= TIE * total:
            assert abs(found["NextUse"] - found["LRU"]) < 0.005 * total
        else:
            assert found["NextUse"] > found["LRU"]


def found_of(make: MakePolicy, functions: Sequence[tuple[np.ndarray, list[Call]]], share: float) -> int:
    """The hits of all functions, each with room for a share of its experts."""
    return sum(
        hits(make(layer_of, calls), calls, len(layer_of), round(share * len(layer_of)))
        for layer_of, calls in functions
    )


def test_a_scan_does_not_flush_hot_experts() -> None:
    """Two experts of each layer are hot; then a prefill of a few chunks uses all experts."""
    layer_of = np.repeat(np.arange(LAYERS), EXPERTS)
    policy = NextUse(layer_of)
    hot = [layer * EXPERTS + expert for layer in range(LAYERS) for expert in (3, 9)]
    one = np.ones(2, np.int64)
    for _ in range(50):
        for layer in range(LAYERS):
            policy.record(layer, np.array(hot[2 * layer : 2 * layer + 2]), one, 1)
    for _ in range(4):
        for layer in range(LAYERS):
            everyone = np.arange(layer * EXPERTS, (layer + 1) * EXPERTS)
            policy.record(layer, everyone, np.full(EXPERTS, 128), 512)
    left = set(range(len(layer_of)))
    while len(left) > len(hot):
        left.remove(policy.victim(np.array(sorted(left))))
    assert left == set(hot)


def test_ties_evict_the_layer_that_is_called_last() -> None:
    """All experts are used in every round: the layer just computed has the longest wait."""
    policy = NextUse(np.array([0, 1, 2]))
    for _ in range(20):
        for layer in range(3):
            policy.record(layer, np.array([layer]), np.array([1]), 1)
    policy.record(0, np.array([0]), np.array([1]), 1)
    assert policy.victim(np.array([0, 1, 2])) == 0
    assert policy.victim(np.array([1, 2])) == 2


def test_experts_that_were_never_used_are_dropped_first() -> None:
    policy = NextUse(np.array([0, 0, 1, 1]))
    policy.record(0, np.array([0]), np.array([1]), 1)
    policy.record(1, np.array([2]), np.array([1]), 1)
    assert policy.victim(np.array([0, 2, 3])) == 3
    assert policy.victim(np.array([0, 1, 2])) == 1
