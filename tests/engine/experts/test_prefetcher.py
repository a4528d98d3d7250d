"""The prefetcher sends hints to the functions that can use them, and does not wait for answers."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from control_plane.engine.experts.predictor import ExpertPredictor
from control_plane.engine.experts.prefetcher import MOST_ROWS, PATIENCE, Prefetcher
from control_plane.engine.experts.trial import KEPT_STEPS, TURN_STEPS, TURNS
from control_plane.engine.loader import load_model
from control_plane.faas.invocation import ExpertUsage
from control_plane.faas.invoking.invoker import Invoker
from control_plane.partition.granularity import Granularity
from functions.contract.messages import Invocation, InvocationResult, ResidencyReport
from tests.conftest import StartFunction
from tests.support.api.api_server import eventually
from tests.support.functions.loopback_server import gateway, loopback_server
from tests.support.models.tiny_engine import make_dispatcher
from tests.support.models.tiny_partition import TinyPartition

EXPERTS, TOP_K = 5, 4


class NothingPending:
    """Pending invocations without any result."""

    def wait(self) -> dict[str, InvocationResult]:
        return {}


class Recorder:
    """An ExpertInvoker that records the hints that it is to send."""

    def __init__(self) -> None:
        self.prefetches: list[dict[str, dict[int, Sequence[int]]]] = []
        """The hints of each call of `prefetch`, by function."""
        self.called: dict[str, dict[int, Sequence[int]]] = {}
        """The hints of the last call of `begin`, by function."""
        self.usage = ExpertUsage()

    def begin(self, invocations: Mapping[str, Invocation]) -> NothingPending:
        self.called = {name: dict(invocation.prefetch) for name, invocation in invocations.items()}
        return NothingPending()

    def prefetch(self, invocations: Mapping[str, Invocation]) -> None:
        self.prefetches.append({name: dict(each.prefetch) for name, each in invocations.items()})
        for invocation in invocations.values():
            assert Invocation.decode(b"".join(invocation.encode())).prefetch == invocation.prefetch

    def abort(self) -> None:
        """No call ever waits."""

    def close(self) -> None:
        """There is no connection to close."""


@pytest.fixture(scope="module")
def fine(tmp_path_factory: pytest.TempPathFactory) -> TinyPartition:
    """A partition with a function for every two experts of a layer."""
    return TinyPartition.make(tmp_path_factory.mktemp("fine"), "f32", Granularity(2, 1))


def sure(tiny: TinyPartition) -> ExpertPredictor:
    """A predictor of the real model that has seen its predictions come true."""
    model = load_model(tiny.folder, tiny.manifest, threads=1)
    predictor = ExpertPredictor.of(model.router, tiny.manifest)
    assert predictor is not None
    hidden_states = tiny.hidden_states(1)
    predictor.begin_step([("a", 1)])
    for layer in tiny.manifest.moe_layers:
        predictor.experts(layer, hidden_states)
        predictor.record(layer, np.arange(EXPERTS)[None])
    return predictor


def answer(cold: int = 0, hits: int = 0) -> InvocationResult:
    report = ResidencyReport(prefetch_hits=hits)
    return InvocationResult(np.zeros((1, 24), np.float32), "i", "h:1", 0.0, cold, report)


def predict_and_prefetch(
    prefetcher: Prefetcher, hidden_states: NDArray[np.float32], experts: list[list[int]]
) -> None:
    """Do what the dispatcher does in the first layer if it calls none of the functions that get hints."""
    prefetcher.prefetch(prefetcher.predict(0, hidden_states, np.array(experts)))


def test_functions_with_the_next_layers_experts_get_hints(fine: TinyPartition) -> None:
    recorder = Recorder()
    prefetcher = Prefetcher(fine.manifest, sure(fine), recorder)
    prefetcher.begin_step([("a", 2)])
    hidden_states = fine.hidden_states(2)
    predict_and_prefetch(prefetcher, hidden_states, [[0, 1, 2, 3]] * 2)
    (hints,) = recorder.prefetches
    assert hints
    for function, hint in hints.items():
        (layer,) = hint
        assert layer == 1
        assert set(hint[1]) <= set(fine.manifest.block(function).experts[1])
    assert sum(len(hint[1]) for hint in hints.values()) >= TOP_K


@pytest.mark.parametrize("granularity", [Granularity(5, 3), Granularity(2, 1)], ids=["called", "others"])
def test_functions_that_are_called_anyway_get_the_hint_with_their_rows(
    granularity: Granularity, tmp_path: Path
) -> None:
    tiny = TinyPartition.make(tmp_path, "f32", granularity)
    recorder = Recorder()
    prefetcher = Prefetcher(tiny.manifest, sure(tiny), recorder)
    dispatcher = make_dispatcher(tiny.manifest, recorder, prefetcher=prefetcher)
    prefetcher.begin_step([("a", 1)])
    index = np.arange(TOP_K)[None]
    dispatcher.begin(0, tiny.hidden_states(1), index, np.ones((1, TOP_K), np.float32))
    one_function = granularity.layers_per_function == 3
    with_rows = [expert for hint in recorder.called.values() for expert in hint.get(1, ())]
    alone = [expert for hints in recorder.prefetches for hint in hints.values() for expert in hint[1]]
    assert len(with_rows) == (TOP_K if one_function else 0)
    assert len(alone) == (0 if one_function else TOP_K)


def test_a_large_step_sends_no_hints(fine: TinyPartition) -> None:
    recorder = Recorder()
    prefetcher = Prefetcher(fine.manifest, sure(fine), recorder)
    rows = MOST_ROWS + 1
    prefetcher.begin_step([("a", rows)])
    hidden_states = fine.hidden_states(rows)
    predict_and_prefetch(prefetcher, hidden_states, [[0, 1, 2, 3]] * rows)
    assert recorder.prefetches == []


def test_a_function_that_misses_nothing_gets_no_hints_until_it_misses_again(fine: TinyPartition) -> None:
    recorder = Recorder()
    prefetcher = Prefetcher(fine.manifest, sure(fine), recorder)
    functions = [block.function for block in fine.manifest.blocks]
    hidden_states = fine.hidden_states(1)

    def step() -> int:
        prefetcher.begin_step([("a", 1)])
        recorder.prefetches.clear()
        predict_and_prefetch(prefetcher, hidden_states, [[0, 1, 2, 3]])
        return sum(len(hints) for hints in recorder.prefetches)

    assert step() > 0
    for _ in range(PATIENCE):
        prefetcher.observe({function: answer() for function in functions})
    assert step() == 0
    prefetcher.observe({function: answer(cold=1) for function in functions})
    assert step() > 0
    for _ in range(PATIENCE):
        prefetcher.observe({function: answer() for function in functions})
    assert step() == 0
    prefetcher.observe({function: answer(hits=1) for function in functions})
    assert step() > 0, "a prefetched expert was used"


def test_no_hints_are_sent_while_steps_are_faster_without_them(fine: TinyPartition) -> None:
    recorder = Recorder()
    now = 0.0
    prefetcher = Prefetcher(fine.manifest, sure(fine), recorder, clock=lambda: now)
    hidden_states = fine.hidden_states(1)

    def step() -> bool:
        nonlocal now
        recorder.prefetches.clear()
        prefetcher.begin_step([("a", 1)])
        predict_and_prefetch(prefetcher, hidden_states, [[0, 1, 2, 3]])
        now += 2.0 if recorder.prefetches else 1.0
        prefetcher.end_step()
        return bool(recorder.prefetches)

    tried = [step() for _ in range(1 + TURN_STEPS * TURNS)]
    assert True in tried
    assert not any(step() for _ in range(KEPT_STEPS))


@contextmanager
def invoking(tiny: TinyPartition, start_function: StartFunction) -> Iterator[tuple[Invoker, str]]:
    """An invoker that knows the first function's address."""
    name = tiny.functions[0]
    function = start_function(tiny.folder, name)
    with loopback_server(gateway({name: function.address})) as server:
        invoker = Invoker(lambda _: server.address, lambda _: True)
        try:
            invoker.begin({name: tiny.invocation(name)}).wait()
            yield invoker, name
        finally:
            invoker.close()


def prefetch_of(tiny: TinyPartition, name: str, layer: int, experts: list[int]) -> Invocation:
    nothing = tiny.invocation(name, rows=1)
    return Invocation(
        layer,
        nothing.model,
        nothing.hidden_states[:0],
        nothing.expert_index[:0],
        nothing.expert_weight[:0],
        prefetch={layer: experts},
    )


def test_a_prefetched_expert_is_in_memory_when_it_is_called(
    tiny: TinyPartition, start_function: StartFunction
) -> None:
    with invoking(tiny, start_function) as (invoker, name):
        experts = list(tiny.manifest.block(name).experts[2])

        def resident() -> int:
            # Sent repeatedly, as in every step; experts in memory are not read again.
            invoker.prefetch({name: prefetch_of(tiny, name, 2, experts[:1])})
            invoker.begin({name: tiny.invocation(name)}).wait()
            return invoker.statistics[name].residency.last.prefetched_experts

        eventually(resident, 1)
        invocation = tiny.invocation(name, 2)
        invocation.expert_index[:] = experts[0]
        (result,) = invoker.begin({name: invocation}).wait().values()
        assert invoker.statistics[name].residency.last.prefetch_hits == 1
        tiny.check(invocation, result.output)


def test_a_prefetch_for_a_function_that_does_not_run_is_dropped(
    tiny: TinyPartition, start_function: StartFunction
) -> None:
    with invoking(tiny, start_function) as (invoker, name):
        invoker.prefetch({"nobody": prefetch_of(tiny, name, 1, [0])})
    function = start_function(tiny.folder, name)
    with loopback_server(gateway({name: function.address})) as server:
        invoker = Invoker(lambda _: server.address, lambda _: True)
        try:
            invoker.begin({name: tiny.invocation(name)}).wait()
            invoker.prefetch({name: prefetch_of(tiny, name, 1, [0])})
            function.process.kill()
            function.process.wait()
            for _ in range(3):
                invoker.prefetch({name: prefetch_of(tiny, name, 1, [0])})
        finally:
            invoker.close()
