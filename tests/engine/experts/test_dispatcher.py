"""The dispatcher sends rows to the functions that have their experts, and its sums equal the model's."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from control_plane.engine.experts.dispatcher import Dispatcher, RowsFailed
from control_plane.errors import FunctionUnavailable
from control_plane.faas.invocation import ExpertUsage, PendingInvocations
from control_plane.partition.granularity import Granularity
from functions.contract.messages import Invocation, InvocationResult
from functions.expert.expert_block import ExpertBlock
from functions.kernels import load_kernel
from tests.support.models.tiny_engine import make_dispatcher
from tests.support.models.tiny_partition import TinyPartition

GRANULARITIES = {
    "one function": Granularity(5, 3),
    "uneven blocks": Granularity(2, 2),
    "a function for each expert": Granularity(1, 1),
}


@dataclass(frozen=True)
class Answered:
    """Pending invocations whose results are known already."""

    results: dict[str, InvocationResult]

    def wait(self) -> dict[str, InvocationResult]:
        return self.results


class LocalInvoker:
    """An ExpertInvoker whose functions run in this process, with the NumPy kernel."""

    def __init__(self, tiny: TinyPartition) -> None:
        kernel = load_kernel("numpy")
        self._blocks = {
            name: ExpertBlock.open(tiny.folder, name, kernel, threads=1) for name in tiny.functions
        }
        self.usage = ExpertUsage()

    def begin(self, invocations: Mapping[str, Invocation]) -> PendingInvocations:
        return Answered({name: self._run(name, invocation) for name, invocation in invocations.items()})

    def _run(self, function: str, invocation: Invocation) -> InvocationResult:
        received = Invocation.decode(bytearray().join(invocation.encode()))
        output, cold = self._blocks[function].run(received)
        return InvocationResult(output, function, "here:1", 0.0, cold)

    def prefetch(self, invocations: Mapping[str, Invocation]) -> None:
        """These functions prefetch nothing."""

    def abort(self) -> None:
        """No call ever waits."""

    def close(self) -> None:
        """There is no connection to close."""


@pytest.fixture(scope="module", params=GRANULARITIES)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyPartition:
    folder = tmp_path_factory.mktemp("tiny")
    return TinyPartition.make(folder, "f32", GRANULARITIES[request.param])


@pytest.fixture(scope="module")
def dispatcher(tiny: TinyPartition) -> Dispatcher:
    return make_dispatcher(tiny.manifest, LocalInvoker(tiny))


@st.composite
def routings(draw: st.DrawFn) -> NDArray[np.int64]:
    """Random experts [T, K], all different within a row."""
    top_k = draw(st.integers(1, 4))
    rows = st.permutations(range(5)).map(lambda experts: experts[:top_k])
    return np.array(draw(st.lists(rows, max_size=9)), np.int64).reshape(-1, top_k)


LAYERS = st.integers(0, 2)


def batch(tiny: TinyPartition, layer: int, index: NDArray[np.int64]) -> Invocation:
    """A whole layer's batch as one invocation, which the oracle `TinyPartition.check` takes."""
    weight = np.random.default_rng(len(index)).random(index.shape, np.float32)
    hidden_states = tiny.hidden_states(len(index))
    return Invocation(layer, tiny.manifest.fingerprint, hidden_states, index.astype(np.int16), weight)


@given(layer=LAYERS, index=routings())
def test_the_sums_equal_the_models(
    tiny: TinyPartition, dispatcher: Dispatcher, layer: int, index: NDArray[np.int64]
) -> None:
    whole = batch(tiny, layer, index)
    pending = dispatcher.begin(layer, whole.hidden_states, index, whole.expert_weight)
    tiny.check(whole, pending.wait())


def test_the_result_of_a_bf16_batch_is_bf16(partitions: Mapping[str, TinyPartition]) -> None:
    tiny = partitions["bf16"]
    index = np.array([[0, 4, 2], [1, 0, 3], [4, 3, 1]])
    whole = batch(tiny, 1, index)
    dispatcher = make_dispatcher(tiny.manifest, LocalInvoker(tiny))
    output = dispatcher.begin(1, whole.hidden_states, index, whole.expert_weight).wait()
    assert output.dtype == np.uint16
    tiny.check(whole, output)


class FailingInvoker(LocalInvoker):
    """Functions that fail for good, once the others have answered."""

    failing: frozenset[str] = frozenset()

    def begin(self, invocations: Mapping[str, Invocation]) -> PendingInvocations:
        return Failed(self.failing) if self.failing & invocations.keys() else super().begin(invocations)


@pytest.fixture(scope="module")
def failing_invoker(tiny: TinyPartition) -> FailingInvoker:
    return FailingInvoker(tiny)


@dataclass(frozen=True)
class Failed:
    """Pending invocations of which some fail."""

    functions: frozenset[str]

    def wait(self) -> dict[str, InvocationResult]:
        error = FunctionUnavailable("gone")
        error.functions = self.functions
        raise error


@given(layer=LAYERS, index=routings(), failing=st.sets(st.integers(0, 4)))
def test_a_failure_names_the_rows_that_need_the_functions(
    tiny: TinyPartition,
    failing_invoker: FailingInvoker,
    layer: int,
    index: NDArray[np.int64],
    failing: set[int],
) -> None:
    owners = {
        expert: block.function for block in tiny.manifest.blocks for expert in block.experts.get(layer, ())
    }
    functions = frozenset(owners[expert] for expert in failing)
    needing = [any(owners[expert] in functions for expert in row) for row in index.tolist()]
    whole = batch(tiny, layer, index)
    failing_invoker.failing = functions
    dispatcher = make_dispatcher(tiny.manifest, failing_invoker)
    pending = dispatcher.begin(layer, whole.hidden_states, index, whole.expert_weight)
    if not any(needing):
        tiny.check(whole, pending.wait())
        return
    with pytest.raises(RowsFailed, match="gone") as raised:
        pending.wait()
    assert raised.value.rows.tolist() == needing
