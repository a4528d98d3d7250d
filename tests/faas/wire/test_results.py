"""What is believed of answers that decode."""

from dataclasses import replace

import numpy as np
import pytest

from control_plane.faas.wire.results import (
    MAX_NAME,
    MAX_REPORTED,
    max_answer_bytes,
    read_result,
)
from functions.contract.messages import Invocation, InvocationResult, ResidencyReport
from functions.contract.safetensors_codec import WireError

INVOCATION = Invocation(
    layer=0,
    model="m",
    hidden_states=np.zeros((3, 8), np.float32),
    expert_index=np.array([[4, -1], [4, 7], [-1, -1]], np.int16),
    expert_weight=np.ones((3, 2), np.float32),
)
GOOD = InvocationResult(np.ones((3, 8), np.float32), "instance", "127.0.0.1:9", 0.25, 2)


def read(result: InvocationResult, elapsed: float = 1.0) -> InvocationResult:
    return read_result(INVOCATION, bytearray(b"".join(result.encode())), elapsed)


def test_a_possible_answer_is_believed() -> None:
    result = read(GOOD)
    assert (result.seconds, result.cold_experts, result.instance) == (0.25, 2, "instance")
    assert (result.output == GOOD.output).all()


@pytest.mark.parametrize(("claimed", "believed"), [(999999.0, 1.0), (1.5, 1.0), (1.0, 1.0), (0.0, 0.0)])
def test_seconds_are_at_most_those_that_passed(claimed: float, believed: float) -> None:
    assert read(replace(GOOD, seconds=claimed)).seconds == believed


@pytest.mark.parametrize(("claimed", "believed"), [(10**17, 2), (3, 2), (2, 2), (0, 0)])
def test_cold_experts_are_at_most_those_that_were_called(claimed: int, believed: int) -> None:
    assert read(replace(GOOD, cold_experts=claimed)).cold_experts == believed


@pytest.mark.parametrize(
    "bad",
    [
        replace(GOOD, seconds=float("nan")),
        replace(GOOD, seconds=float("inf")),
        replace(GOOD, seconds=-1.0),
        replace(GOOD, cold_experts=-1),
        replace(GOOD, instance="x" * (MAX_NAME + 1)),
        replace(GOOD, residency=ResidencyReport(resident_bytes=MAX_REPORTED + 1)),
        replace(GOOD, residency=ResidencyReport(read_bytes=10**17)),
        replace(GOOD, output=GOOD.output[1:]),
        replace(GOOD, output=np.zeros((3, 8), "<u2")),
    ],
)
def test_an_impossible_answer_is_refused(bad: InvocationResult) -> None:
    with pytest.raises(WireError):
        read(bad)


def test_the_largest_good_answer_fits_the_bound() -> None:
    padded = replace(GOOD, address="a" * 60_000)
    assert len(b"".join(padded.encode())) <= max_answer_bytes(INVOCATION) < 70_000
