"""The calls that keep functions awake are valid invocations, which a function answers without any weights."""

import pytest

from control_plane.autoscaling.awake import awake_interval, awake_invocations
from functions.contract.messages import Invocation
from functions.expert.expert_block import ExpertBlock
from functions.kernels import load_kernel
from tests.support.models.tiny_partition import TinyPartition


def test_a_function_answers_without_reading_experts(tiny: TinyPartition) -> None:
    invocations = awake_invocations(tiny.manifest)
    assert list(invocations) == tiny.functions
    for name, body in invocations.items():
        block = ExpertBlock.open(tiny.folder, name, load_kernel("numpy"), threads=1)
        output, cold = block.run(Invocation.decode(body))
        assert (output.shape, cold) == ((0, tiny.manifest.hidden_size), 0)
        assert block.residency.report().read_bytes == 0


@pytest.mark.parametrize(("idle_timeout", "seconds"), [(900.0, 10.0), (30.0, 10.0), (6.0, 2.0)])
def test_the_interval_is_shorter_than_the_time_after_which_functions_are_idle(
    idle_timeout: float, seconds: float
) -> None:
    assert awake_interval(idle_timeout) == seconds
