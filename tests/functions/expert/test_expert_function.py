"""An expert function answers invocations as the model does that its experts were taken from."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event, Semaphore
from typing import Any

import numpy as np
import pytest

import functions
from control_plane.partition.granularity import Granularity
from functions.contract.messages import Invocation, InvocationResult
from functions.expert.expert_block import ExpertBlock
from functions.expert.expert_function import ExpertFunction
from functions.http.messages import FunctionRequest
from functions.kernels import load_kernel
from functions.kernels.gated_ffn import NumpyGatedFFN
from tests.conftest import StartFunction
from tests.support.functions.expert_process import ExpertProcess
from tests.support.models.tiny_partition import TinyPartition

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("dtype", ["f32", "bf16", "int8", "int4"])
def test_every_layer_answers_as_the_model_does(
    partitions: Mapping[str, TinyPartition], start_function: StartFunction, dtype: str
) -> None:
    tiny = partitions[dtype]
    for name in (tiny.functions[0], tiny.functions[-1]):
        function = start_function(tiny.folder, name)
        for layer in tiny.manifest.moe_layers:
            for rows, top_k in ((1, 1), (1, 4), (7, 2), (70, 4)):
                invocation = tiny.invocation(name, layer, rows=rows, top_k=top_k, seed=rows)
                tiny.check(invocation, function.invoke(invocation).output)


def test_rows_of_other_functions_get_zeros(function: ExpertProcess, tiny: TinyPartition) -> None:
    invocation = tiny.invocation(function.name, rows=4)
    invocation.expert_index[1] = -1
    output = function.invoke(invocation).output
    tiny.check(invocation, output)
    assert not output[1].any()
    assert output[0].any()


def test_an_invocation_without_experts_gives_zeros(function: ExpertProcess, tiny: TinyPartition) -> None:
    invocation = tiny.invocation(function.name, rows=2, top_k=0)
    assert not function.invoke(invocation).output.any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("dtype", ["f32", "int8"])
def test_a_row_of_nan_or_infinity_does_not_affect_others(
    partitions: Mapping[str, TinyPartition], start_function: StartFunction, dtype: str, value: float
) -> None:
    tiny = partitions[dtype]
    function = start_function(tiny.folder, tiny.functions[0])
    invocation = tiny.invocation(function.name, rows=3)
    invocation.hidden_states[1] = value
    invocation.expert_index[1] = 0
    output = function.invoke(invocation).output
    assert not np.isfinite(output[1]).all()
    neighbours = slice(None, None, 2)
    tiny.check(rows_of(invocation, neighbours), output[neighbours])


def rows_of(invocation: Invocation, rows: slice) -> Invocation:
    return replace(
        invocation,
        hidden_states=invocation.hidden_states[rows],
        expert_index=invocation.expert_index[rows],
        expert_weight=invocation.expert_weight[rows],
    )


REFUSED: dict[str, tuple[Callable[[Invocation], dict[str, Any]], int, str]] = {
    "another model": (lambda _: {"model": "f" * 64}, 409, "wrong_model"),
    "a layer that the model lacks": (lambda _: {"layer": 3}, 400, "wrong_layer"),
    "an expert of another block": (lambda i: {"expert_index": i.expert_index * 0 + 4}, 404, "unknown_expert"),
    "an expert that no layer has": (
        lambda i: {"expert_index": i.expert_index * 0 + 99},
        404,
        "unknown_expert",
    ),
    "bf16 for f32": (lambda i: {"hidden_states": i.hidden_states.astype("<u2")}, 400, "wrong_dtype"),
    "too few columns": (lambda i: {"hidden_states": i.hidden_states[:, 1:]}, 400, "wrong_shape"),
    "more experts than a row can have": (
        lambda i: {
            "expert_index": np.repeat(i.expert_index, 2, axis=1),
            "expert_weight": np.repeat(i.expert_weight, 2, axis=1),
        },
        400,
        "wrong_shape",
    ),
    "an expert below none": (lambda i: {"expert_index": i.expert_index * 0 - 5}, 400, "bad_request"),
    "rows that differ": (lambda i: {"hidden_states": i.hidden_states[1:]}, 400, "bad_request"),
    "weights that differ": (lambda i: {"expert_weight": i.expert_weight[:, 1:]}, 400, "bad_request"),
    "float experts": (lambda i: {"expert_index": i.expert_weight}, 400, "bad_request"),
    "one dimension": (lambda i: {"hidden_states": i.hidden_states.reshape(-1)}, 400, "bad_request"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_invocation_for_another_block_is_refused(
    function: ExpertProcess, tiny: TinyPartition, case: str
) -> None:
    change, status, code = REFUSED[case]
    invocation = tiny.invocation(function.name)
    before = function.metrics()
    wrong = replace(invocation, **change(invocation))
    assert function.error(b"".join(wrong.encode())) == (status, code)
    after = function.metrics()
    assert after["refused_total"] == before["refused_total"] + 1
    assert after["invocations_total"] == before["invocations_total"]
    tiny.check(invocation, function.invoke(invocation).output)


@pytest.mark.parametrize("body", [b"", b"{}", b"\xff" * 100, b"\0" * 100], ids=repr)
def test_a_malformed_body_is_refused(function: ExpertProcess, body: bytes) -> None:
    assert function.error(body) == (400, "bad_request")


def test_results_and_metrics_report_cold_experts_and_memory(
    start_function: StartFunction, tiny: TinyPartition
) -> None:
    function = start_function(tiny.folder, tiny.functions[0])
    size = tiny.manifest.expert_nbytes
    first, second, again = (tiny.invocation(function.name, layer) for layer in (0, 2, 0))
    first.expert_index[first.expert_index == 1] = 0

    def memory(result: InvocationResult) -> tuple[int, int, int]:
        assert result.residency is not None
        return result.cold_experts, result.residency.resident_experts, result.residency.resident_bytes

    result = function.invoke(first)
    assert memory(result) == (1, 1, size)
    assert result.kernel == load_kernel().name
    assert memory(function.invoke(first)) == (0, 1, size)
    assert memory(function.invoke(second)) == (2, 3, 3 * size)
    assert memory(function.invoke(again)) == (1, 4, 4 * size)
    metrics = function.metrics()
    assert metrics.pop("compute_seconds_total") > 0
    assert metrics.pop("overhead_bytes") > 1 << 20
    assert metrics == {
        "invocations_total": 4,
        "rows_total": 12,
        "cold_experts_total": 4,
        "refused_total": 0,
        "in_flight": 0,
        "experts": 6,
        "limit_bytes": 6 * size,
        "resident_experts": 4,
        "resident_bytes": 4 * size,
        "read_bytes_total": 4 * size,
        "prefetched_experts_total": 0,
        "prefetch_hits_total": 0,
        "prefetch_wasted_bytes_total": 0,
        "evicted_for_room_total": 0,
        "evicted_for_limit_total": 0,
        "evicted_for_idleness_total": 0,
        f'kernel_info{{kernel="{load_kernel().name}"}}': 1,
    }


def test_a_result_names_its_process_and_address(
    function: ExpertProcess, start_function: StartFunction, tiny: TinyPartition
) -> None:
    other = start_function(tiny.folder, function.name)
    invocation = tiny.invocation(function.name)
    first, second, third = (f.invoke(invocation) for f in (function, function, other))
    assert first.instance == second.instance != third.instance
    assert (first.address, third.address) == (str(function.address), str(other.address))


def test_probes_are_not_invocations(start_function: StartFunction, tiny: TinyPartition) -> None:
    function = start_function(tiny.folder, tiny.functions[0])
    before = function.metrics()
    for path in ("/_/health", "/_/ready", "/_/residency", "/metrics"):
        assert function.call("GET", path)[0] == 200
    after = function.metrics()
    assert after | {"overhead_bytes": before["overhead_bytes"]} == before
    assert before["experts"] == 6
    nonzero = {"experts", "limit_bytes", "overhead_bytes"}
    assert {name for name, value in before.items() if value} - nonzero == {
        f'kernel_info{{kernel="{load_kernel().name}"}}'
    }


def test_concurrent_calls_get_their_own_answers(function: ExpertProcess, tiny: TinyPartition) -> None:
    invocations = [
        tiny.invocation(function.name, seed % 3, rows=seed % 9 + 1, seed=seed) for seed in range(64)
    ]
    with ThreadPoolExecutor(8) as pool:
        for invocation, result in zip(invocations, pool.map(function.invoke, invocations), strict=True):
            tiny.check(invocation, result.output)


@dataclass(frozen=True)
class HeldKernel(NumpyGatedFFN):
    """A kernel that waits for `go_on`, which keeps a call in flight for as long as a test needs."""

    entered: Semaphore = field(default_factory=lambda: Semaphore(0))
    go_on: Event = field(default_factory=Event)

    def gated_ffn(self, *arguments: Any, **options: Any) -> Any:
        self.entered.release()
        assert self.go_on.wait(30)
        return super().gated_ffn(*arguments, **options)


def test_calls_over_the_limit_of_calls_in_flight_are_refused(tiny: TinyPartition) -> None:
    name, kernel = tiny.functions[0], HeldKernel()
    function = ExpertFunction(max_in_flight=1, block=ExpertBlock.open(tiny.folder, name, kernel, threads=1))
    request = FunctionRequest(
        "POST", "/", bytearray().join(tiny.invocation(name).encode()), local_address="here:1"
    )
    with ThreadPoolExecutor(1) as pool:
        in_flight = pool.submit(function, request)
        assert kernel.entered.acquire(timeout=30)
        refused = function(request)
        kernel.go_on.set()
        assert in_flight.result().status == 200
    assert refused.status == 429
    assert json.loads(b"".join(refused.body))["error"]["code"] == "too_many_requests"
    assert function.state.refused == 1
    assert function(request).status == 200


def test_the_function_works_without_the_c_kernel(
    start_function: StartFunction, tiny: TinyPartition, tmp_path: Path
) -> None:
    sources = Path(functions.__file__).parent
    shutil.copytree(sources, tmp_path / "functions", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    function = start_function(tiny.folder, tiny.functions[0], sources=tmp_path)
    assert "with the numpy kernel" in function.banner
    invocation = tiny.invocation(function.name, rows=20)
    tiny.check(invocation, function.invoke(invocation).output)


@pytest.mark.parametrize(
    ("granularity", "cores", "fits"),
    [
        (Granularity(5, 1), 2, True),
        (Granularity(5, 3), 1, False),
        (Granularity(3, 1), 2, False),
        (Granularity(3, 1), 3, True),
        (Granularity(1, 1), 4, False),
    ],
)
def test_a_layers_functions_and_their_client_need_a_core_each(
    granularity: Granularity, cores: int, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = TinyPartition.make(tmp_path, "f32", granularity)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    block = ExpertBlock.open(tiny.folder, tiny.functions[0], load_kernel("numpy"), threads=1)
    with closing(block.residency):
        assert block.fits_beside_client == fits
