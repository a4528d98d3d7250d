"""A function computes what the manifest says that its experts compute."""

import json
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest

from control_plane.architecture.choice import architecture_of
from control_plane.partition.checkpoint.reader import Checkpoint
from control_plane.partition.checkpoint.tensors.safetensors_file import load_header
from control_plane.partition.granularity import Granularity
from control_plane.partition.manifest import Manifest
from control_plane.partition.partitioner import write_partition
from control_plane.partition.plan import Plan
from functions.contract.messages import InvocationResult
from functions.fast_path.shared import fast_path_type
from functions.kernels import Activation
from tests.conftest import StartFunction
from tests.support.functions.kernels import as_f32, assert_close
from tests.support.models.expert_modules import FAMILIES, ExpertModule
from tests.support.models.planned_experts import with_experts
from tests.support.models.tiny_partition import TinyPartition

pytestmark = pytest.mark.slow

ERROR_BOUNDS = {"f32": 1e-5, "bf16": 2e-2, "int8": 3e-2, "int4": 0.2}
"""The largest error by dtype, as a share of the largest output."""
CALLS = 3
"""Of one connection: the first reads experts and is answered in Python, the others in C, if it is built."""


@pytest.mark.parametrize("dtype", ERROR_BOUNDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_function_answers_as_the_familys_experts_do(
    tiny: TinyPartition, start_function: StartFunction, tmp_path: Path, family: str, dtype: str
) -> None:
    model = tiny.folder.parent / "model"
    checkpoint = Checkpoint.open(model)
    architecture = architecture_of(
        checkpoint.config, {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    )
    plan = Plan.make(checkpoint, architecture, Granularity(5, 3), dtype, "auto", "tiny")
    sizes = plan.shape.hidden_size, plan.shape.intermediate_size, architecture.num_experts
    layers = {layer: ExpertModule.random(family, *sizes, seed=layer) for layer in plan.moe_layers}
    out = tmp_path / "partition"
    other = replace(tiny, folder=out, manifest=write_partition(with_experts(plan, layers), model, out))
    Manifest.load(out).verify(out)
    metadata = load_header(out / other.manifest.blocks[0].file)[0]["__metadata__"]
    assert Activation(**json.loads(metadata["activation"])) == layers[0].activation
    assert json.loads(metadata["has_bias"]) == layers[0].has_bias
    function = start_function(out, other.functions[0])
    for layer, experts in layers.items():
        invocation = other.invocation(function.name, layer, rows=7)
        index = np.maximum(invocation.expert_index, 0)
        invocation = replace(invocation, expert_index=index)
        first, *others = results(function.connect(), b"".join(invocation.encode()))
        expected = experts(as_f32(invocation.hidden_states), index, invocation.expert_weight)
        assert_close(as_f32(first.output), expected, ERROR_BOUNDS[dtype])
        for result in others:
            np.testing.assert_array_equal(result.output, first.output)
        # Only Python sends reports.
        assert fast_path_type() is None or any(result.residency is None for result in others)


def results(connection: HTTPConnection, body: bytes) -> list[InvocationResult]:
    """The answers to a call that is repeated over one connection."""
    answers = []
    for _ in range(CALLS):
        connection.request("POST", "/", body)
        answer = connection.getresponse()
        assert answer.status == 200
        answers.append(InvocationResult.decode(answer.read()))
    connection.close()
    return answers
