"""Functions are told what to expect: those that can use it, by calls for which nobody waits."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from control_plane.engine.experts.predictor import ExpertPredictor
from control_plane.engine.experts.prefetcher import MOST_ROWS, PATIENCE, Prefetcher
from control_plane.engine.experts.trial import KEPT_STEPS, TURN_STEPS, TURNS
from control_plane.faas.invocation import ExpertUsage
from control_plane.faas.invoker import Invoker
from control_plane.partition.granularity import Granularity
from functions.contract.wire import Invocation, InvocationResult, ResidencyReport
from tests.conftest import StartFunction
from tests.support.api_server import eventually
from tests.support.loopback_server import gateway, loopback_server
from tests.support.tiny_engine import make_dispatcher
from tests.support.tiny_partition import TinyPartition

EXPERTS, TOP_K = 5, 4


class Recorder:
    """An ExpertInvoker that keeps what functions are told."""

    def __init__(self) -> None:
        self.told: list[dict[str, dict[int, Sequence[int]]]] = []
        self.called: dict[str, dict[int, Sequence[int]]] = {}
        self.usage = ExpertUsage()

    def begin(self, invocations: Mapping[str, Invocation]) -> Callable[[], dict[str, InvocationResult]]:
        self.called = {name: dict(invocation.prefetch) for name, invocation in invocations.items()}
        return dict

    def prefetch(self, invocations: Mapping[str, Invocation]) -> None:
        self.told.append({name: dict(told.prefetch) for name, told in invocations.items()})
        for invocation in invocations.values():
            assert Invocation.decode(b"".join(invocation.encode())).prefetch == invocation.prefetch

    def abort(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture(scope="module")
def fine(tmp_path_factory: pytest.TempPathFactory) -> TinyPartition:
    """A function for each two experts of each layer."""
    return TinyPartition.make(tmp_path_factory.mktemp("fine"), "f32", Granularity(2, 1))


def sure(tiny: TinyPartition) -> ExpertPredictor:
    """A predictor of the real model, which has seen that its routers are right."""
    predictor = ExpertPredictor.of(tiny.model, tiny.manifest)
    hidden_states = torch.from_numpy(tiny.hidden_states(1))
    predictor.begin_step([("a", 1)])
    for layer in tiny.manifest.moe_layers:
        predictor.experts(layer, hidden_states)
        predictor.record(layer, np.arange(EXPERTS)[None])
    return predictor


def answer(cold: int = 0, hits: int = 0) -> InvocationResult:
    report = ResidencyReport(prefetch_hits=hits)
    return InvocationResult(np.zeros((1, 24), np.float32), "i", "h:1", 0.0, cold, report)


def tell(prefetcher: Prefetcher, hidden_states: torch.Tensor, experts: list[list[int]]) -> None:
    """As the dispatcher does of the first layer, when it calls none of those that are to be told."""
    prefetcher.prefetch(prefetcher.predict(0, hidden_states, np.array(experts)))


def test_those_that_have_the_next_layers_experts_are_told(fine: TinyPartition) -> None:
    recorder = Recorder()
    prefetcher = Prefetcher(fine.manifest, sure(fine), recorder)
    prefetcher.begin_step([("a", 2)])
    hidden_states = torch.from_numpy(fine.hidden_states(2))
    tell(prefetcher, hidden_states, [[0, 1, 2, 3]] * 2)
    (told,) = recorder.told
    assert told
    for function, expected in told.items():
        (layer,) = expected
        assert layer == 1
        assert set(expected[1]) <= set(fine.manifest.block(function).experts[1])
    assert sum(len(expected[1]) for expected in told.values()) >= TOP_K


@pytest.mark.parametrize("granularity", [Granularity(5, 3), Granularity(2, 1)], ids=["called", "others"])
def test_who_is_called_now_is_told_with_its_rows(granularity: Granularity, tmp_path: Path) -> None:
    tiny = TinyPartition.make(tmp_path, "f32", granularity)
    recorder = Recorder()
    prefetcher = Prefetcher(tiny.manifest, sure(tiny), recorder)
    dispatcher = make_dispatcher(tiny.manifest, recorder, prefetcher=prefetcher)
    prefetcher.begin_step([("a", 1)])
    index = torch.arange(TOP_K)[None]
    dispatcher.begin(0, torch.from_numpy(tiny.hidden_states(1)), index, torch.ones(1, TOP_K))
    one_function = granularity.layers_per_function == 3
    with_rows = [expert for hints in recorder.called.values() for expert in hints.get(1, ())]
    alone = [expert for told in recorder.told for hints in told.values() for expert in hints[1]]
    assert len(with_rows) == (TOP_K if one_function else 0)
    assert len(alone) == (0 if one_function else TOP_K)


def test_of_a_long_prompt_nothing_is_told(fine: TinyPartition) -> None:
    recorder = Recorder()
    prefetcher = Prefetcher(fine.manifest, sure(fine), recorder)
    rows = MOST_ROWS + 1
    prefetcher.begin_step([("a", rows)])
    hidden_states = torch.from_numpy(fine.hidden_states(rows))
    tell(prefetcher, hidden_states, [[0, 1, 2, 3]] * rows)
    assert recorder.told == []


def test_who_has_all_it_needs_is_told_nothing_until_it_misses_again(fine: TinyPartition) -> None:
    recorder = Recorder()
    prefetcher = Prefetcher(fine.manifest, sure(fine), recorder)
    functions = [block.function for block in fine.manifest.blocks]
    hidden_states = torch.from_numpy(fine.hidden_states(1))

    def step() -> int:
        prefetcher.begin_step([("a", 1)])
        recorder.told.clear()
        tell(prefetcher, hidden_states, [[0, 1, 2, 3]])
        return sum(len(told) for told in recorder.told)

    assert step() > 0
    for _ in range(PATIENCE):
        prefetcher.observed({function: answer() for function in functions})
    assert step() == 0
    prefetcher.observed({function: answer(cold=1) for function in functions})
    assert step() > 0
    for _ in range(PATIENCE):
        prefetcher.observed({function: answer() for function in functions})
    assert step() == 0
    prefetcher.observed({function: answer(hits=1) for function in functions})
    assert step() > 0, "what was read ahead was of use"


def test_functions_are_told_nothing_while_steps_are_faster_without_it(fine: TinyPartition) -> None:
    recorder = Recorder()
    now = 0.0
    prefetcher = Prefetcher(fine.manifest, sure(fine), recorder, clock=lambda: now)
    hidden_states = torch.from_numpy(fine.hidden_states(1))

    def step() -> bool:
        nonlocal now
        recorder.told.clear()
        prefetcher.begin_step([("a", 1)])
        tell(prefetcher, hidden_states, [[0, 1, 2, 3]])
        now += 2.0 if recorder.told else 1.0
        prefetcher.end_step()
        return bool(recorder.told)

    tried = [step() for _ in range(1 + TURN_STEPS * TURNS)]
    assert True in tried
    assert not any(step() for _ in range(KEPT_STEPS))


@contextmanager
def invoking(tiny: TinyPartition, start_function: StartFunction) -> Iterator[tuple[Invoker, str]]:
    """An invoker that knows where the first function is."""
    name = tiny.functions[0]
    function = start_function(tiny.folder, name)
    with loopback_server(gateway({name: function.address})) as server:
        invoker = Invoker(lambda _: server.address)
        try:
            invoker.begin({name: tiny.invocation(name)})()
            yield invoker, name
        finally:
            invoker.close()


def advice(tiny: TinyPartition, name: str, layer: int, experts: list[int]) -> Invocation:
    nothing = tiny.invocation(name, rows=1)
    return Invocation(
        layer,
        nothing.model,
        nothing.hidden_states[:0],
        nothing.expert_index[:0],
        nothing.expert_weight[:0],
        prefetch={layer: experts},
    )


def test_what_a_function_is_told_is_there_when_it_is_called(
    tiny: TinyPartition, start_function: StartFunction
) -> None:
    with invoking(tiny, start_function) as (invoker, name):
        experts = list(tiny.manifest.block(name).experts[2])

        def resident() -> int:
            # Told more than once, as in every step: what is there already is not read again.
            invoker.prefetch({name: advice(tiny, name, 2, experts[:1])})
            (result,) = invoker.begin({name: tiny.invocation(name)})().values()
            return result.residency.prefetched_experts

        eventually(resident, 1)
        invocation = tiny.invocation(name, 2)
        invocation.expert_index[:] = experts[0]
        (result,) = invoker.begin({name: invocation})().values()
        assert result.residency.prefetch_hits == 1
        tiny.check(invocation, result.output)


def test_advice_for_a_function_that_sleeps_or_died_is_forgotten(
    tiny: TinyPartition, start_function: StartFunction
) -> None:
    with invoking(tiny, start_function) as (invoker, name):
        invoker.prefetch({"nobody": advice(tiny, name, 1, [0])})
    function = start_function(tiny.folder, name)
    with loopback_server(gateway({name: function.address})) as server:
        invoker = Invoker(lambda _: server.address)
        try:
            invoker.begin({name: tiny.invocation(name)})()
            invoker.prefetch({name: advice(tiny, name, 1, [0])})
            function.process.kill()
            function.process.wait()
            for _ in range(3):
                invoker.prefetch({name: advice(tiny, name, 1, [0])})
        finally:
            invoker.close()
