"""A function with less memory than experts gives the same answers, and keeps to its limit."""

import json
import random
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from functions.contract.manifest import ExpertChecksum, StoredExpert
from functions.contract.messages import Invocation, ResidencyReport
from functions.expert.block_file import BlockFile
from functions.expert.expert_block import ExpertBlock
from functions.expert.residency import Residency
from functions.kernels import available_isas, load_kernel
from tests.conftest import StartFunction
from tests.support.api.api_server import eventually
from tests.support.functions.expert_process import ExpertProcess
from tests.support.models.tiny_partition import TinyPartition

EXPERTS = 6
"""Experts of the first function: two of each of three layers."""


@contextmanager
def opened(tiny: TinyPartition, limit: int | None = None) -> Iterator[ExpertBlock]:
    """The first function's block, which may hold `limit` experts."""
    nbytes = None if limit is None else limit * tiny.manifest.expert_nbytes
    block = ExpertBlock.open(tiny.folder, tiny.functions[0], load_kernel(), 1, nbytes)
    with closing(block.residency):
        yield block


def calls(tiny: TinyPartition) -> list[Invocation]:
    """Calls of all layers in random order, with one row and with many."""
    layers = random.Random(0).choices(range(3), k=30)
    return [
        tiny.invocation(tiny.functions[0], layer, rows=1 + 16 * (seed % 3), seed=seed)
        for seed, layer in enumerate(layers)
    ]


@pytest.mark.parametrize("dtype", ["f32", "bf16", "int8"])
@pytest.mark.parametrize("limit", [0, 1, 2, 3])
def test_answers_do_not_depend_on_the_limit(
    partitions: Mapping[str, TinyPartition], dtype: str, limit: int
) -> None:
    tiny = partitions[dtype]
    with opened(tiny) as whole, opened(tiny, limit) as limited:
        for invocation in calls(tiny):
            expected, _ = whole.run(invocation)
            output, _ = limited.run(invocation)
            assert output.tobytes() == expected.tobytes()
            assert limited.residency.report().resident_experts <= limit


def test_concurrent_calls_with_room_for_one_expert_get_their_own_answers(tiny: TinyPartition) -> None:
    with opened(tiny) as whole, opened(tiny, 1) as limited, ThreadPoolExecutor(8) as pool:
        invocations = calls(tiny)
        answers = pool.map(limited.run, invocations)
        for invocation, (output, _) in zip(invocations, answers, strict=True):
            assert output.tobytes() == whole.run(invocation)[0].tobytes()


def test_the_limit_can_change_while_calls_are_running(tiny: TinyPartition) -> None:
    with opened(tiny) as whole, opened(tiny) as limited, ThreadPoolExecutor(4) as pool:
        invocations = calls(tiny) * 5
        answers = pool.map(limited.run, invocations)
        for step in range(200):
            limited.residency.set_limit(step % 5 * tiny.manifest.expert_nbytes)
            if step % 7 == 0:
                limited.residency.drop_idle()
        for invocation, (output, _) in zip(invocations, answers, strict=True):
            assert output.tobytes() == whole.run(invocation)[0].tobytes()
        assert limited.residency.report().resident_experts <= 4


def prefetch(tiny: TinyPartition, layer: int, experts: list[int]) -> Invocation:
    """An invocation that only carries a prefetch."""
    nothing = tiny.invocation(tiny.functions[0], layer, rows=1)
    fields = ("hidden_states", "expert_index", "expert_weight")
    return replace(
        nothing, **{name: getattr(nothing, name)[:0] for name in fields}, prefetch={layer: experts}
    )


def test_a_prefetched_expert_is_in_memory_when_it_is_called(tiny: TinyPartition) -> None:
    with opened(tiny, EXPERTS) as block:
        experts = list(tiny.manifest.block(tiny.functions[0]).experts[1])
        output, _ = block.run(prefetch(tiny, 1, experts[:1]))
        assert output.shape == (0, tiny.manifest.hidden_size)
        eventually(lambda: block.residency.report().resident_experts, 1)
        invocation = tiny.invocation(tiny.functions[0], 1)
        invocation.expert_index[:] = experts[0]
        assert block.run(invocation)[1] == 0
        report = block.residency.report()
        assert (report.prefetched_experts, report.prefetch_hits, report.prefetch_wasted_bytes) == (1, 1, 0)


def test_experts_of_other_blocks_are_not_prefetched(tiny: TinyPartition) -> None:
    with opened(tiny) as block:
        block.run(prefetch(tiny, 1, [4, 99]))
        block.run(replace(prefetch(tiny, 1, []), prefetch={7: [0]}))
        assert block.residency.report().prefetched_experts == 0


def report(function: ExpertProcess, method: str = "GET", body: Any = None) -> ResidencyReport:
    """The report in the residency endpoint's response."""
    status, answer = function.call(
        method, "/_/residency", None if body is None else json.dumps(body).encode()
    )
    assert status == 200, answer
    found = json.loads(answer)
    assert found.pop("kernel") in available_isas()
    return ResidencyReport(**found)


def test_the_residency_endpoint_sets_the_limit(start_function: StartFunction, tiny: TinyPartition) -> None:
    function = start_function(tiny.folder, tiny.functions[0])
    size = tiny.manifest.expert_nbytes
    for invocation in calls(tiny):
        function.invoke(invocation)
    assert report(function).resident_bytes == EXPERTS * size
    lowered = report(function, "PUT", {"limit_bytes": 3 * size + 1})
    assert (lowered.limit_bytes, lowered.resident_experts, lowered.evicted_for_limit) == (3 * size + 1, 3, 3)
    dropped = report(function, "DELETE")
    assert (dropped.limit_bytes, dropped.resident_bytes, dropped.evicted_for_idleness) == (3 * size + 1, 0, 3)
    for invocation in calls(tiny):
        result = function.invoke(replace(invocation, resident_limit=2 * size))
        tiny.check(invocation, result.output)
        assert result.residency is not None
        assert result.residency.limit_bytes == 2 * size
        assert result.residency.resident_bytes <= 2 * size
    assert result.residency is not None
    assert result.residency.evicted_for_room > 0
    assert result.residency.read_bytes == report(function).read_bytes >= EXPERTS * size


def test_a_call_can_carry_a_prefetch_for_another_layer(
    partitions: Mapping[str, TinyPartition],
) -> None:
    tiny = partitions["f32"]
    name = tiny.functions[0]
    predicted = {1: tiny.manifest.block(name).experts[1][:1]}
    with opened(tiny) as block:
        block.run(replace(tiny.invocation(name, 0), prefetch=predicted))
        eventually(lambda: block.residency.report().resident_experts, 3)
        assert block.residency.report().prefetched_experts == 1
        _, cold = block.run(tiny.invocation(name, 1))
        assert (cold, block.residency.report().prefetch_hits) == (1, 1)


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b'{"limit_bytes": -1}', b'{"limit_bytes": true}', b"\xff"]
)
def test_a_malformed_limit_is_refused(function: ExpertProcess, body: bytes) -> None:
    assert function.error(body, "PUT", "/_/residency") == (400, "bad_request")
    assert function.error(b"", "POST", "/_/residency") == (405, "method_not_allowed")


def test_dropped_experts_return_their_memory_to_the_system(tmp_path: Path) -> None:
    size, count = 1 << 20, 64
    path = tmp_path / "block"
    expert = np.random.default_rng(0).bytes(size)
    path.write_bytes(expert * count)
    checksum = ExpertChecksum(expert).hexdigest()
    experts = [StoredExpert(0, number, checksum) for number in range(count)]
    residency = Residency(BlockFile(path, 0, size, experts), limit=count * size)
    with closing(residency):
        before = psutil.Process().memory_info().rss
        with residency.call(range(count), np.ones(count, np.int64), 1) as waves:
            assert sum(len(wave.offsets) for wave in waves) == count
        held = psutil.Process().memory_info().rss
        residency.set_limit(16 * size)
        lowered = psutil.Process().memory_info().rss
        residency.drop_idle()
        dropped = psutil.Process().memory_info().rss
    assert held - before == pytest.approx(64 * size, rel=0.1)
    assert held - lowered == pytest.approx(48 * size, rel=0.1)
    assert lowered - dropped == pytest.approx(16 * size, rel=0.1)
