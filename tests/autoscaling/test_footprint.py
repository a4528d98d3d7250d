"""The memory that serving takes, and budgets that are too small or too large."""

import pytest

from control_plane.autoscaling.footprint import (
    FUNCTION_OVERHEAD_BYTES,
    BlockSize,
    Footprint,
    StepShape,
    block_sizes,
    check_limit,
)
from control_plane.errors import ConfigError
from control_plane.partition.granularity import Granularity
from control_plane.quantities import parse_bytes
from functions.host.memory import MemoryLimit
from tests.support.models.tiny_partition import TinyPartition

EXPERT = 10_000_000
FOOTPRINT = Footprint(300_000_000, EXPERT, {"a": BlockSize(40, 2), "b": BlockSize(5, 4)})
LEAST = 300_000_000 + 2 * FUNCTION_OVERHEAD_BYTES + 6 * EXPERT


def test_the_least_budget_is_the_sum_of_all_least_parts() -> None:
    assert FOOTPRINT.least == LEAST
    FOOTPRINT.check(LEAST)


def test_a_smaller_budget_is_refused_with_one_that_is_enough() -> None:
    with pytest.raises(
        ConfigError, match=r"^memory_budget: 376.0 MB is too little; at least (\S+) would do"
    ) as caught:
        FOOTPRINT.check(LEAST - 1)
    words = str(caught.value).split()
    FOOTPRINT.check(parse_bytes(words[words.index("least") + 1]))


def test_a_budget_above_the_process_limit_is_refused() -> None:
    limit = MemoryLimit(4 * 10**9, "this machine")
    check_limit(4 * 10**9, limit)
    with pytest.raises(ConfigError) as caught:
        check_limit(4 * 10**9 + 1, limit)
    assert str(caught.value) == "memory_budget: 4.0 GB is more than the 4.0 GB that this machine allows"


def test_the_functions_of_a_layer_together_hold_the_experts_of_one_row(tiny: TinyPartition) -> None:
    """The three functions have 2, 2 and 1 of the 5 experts of each of 3 layers; a row has 4 experts."""
    assert list(block_sizes(tiny.manifest).values()) == [BlockSize(6, 2), BlockSize(6, 2), BlockSize(3, 2)]


@pytest.mark.parametrize(
    ("granularity", "expected"), [(Granularity(5, 1), (5, 4)), (Granularity(1, 1), (1, 1))]
)
def test_blocks_of_other_sizes(
    tmp_path_factory: pytest.TempPathFactory, granularity: Granularity, expected: tuple[int, int]
) -> None:
    partition = TinyPartition.make(tmp_path_factory.mktemp("other"), "f32", granularity)
    assert set(block_sizes(partition.manifest).values()) == {BlockSize(*expected)}


def test_a_step_with_larger_tensors_takes_more() -> None:
    step = StepShape(512, 2048, 5632, 4, 64, 151936, 8192)
    assert 150e6 < step.nbytes < 400e6
    assert StepShape(256, 2048, 5632, 4, 64, 151936, 8192).nbytes < step.nbytes
    assert StepShape(512, 2048, 5632, 4, 64, 32000, 8192).nbytes < step.nbytes
