"""What is believed of a function's answer. A function may be faulty, or somebody else's."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from control_plane.faas.wire.plain_calls import PlainAnswer
from functions.contract.messages import Invocation, InvocationResult
from functions.contract.safetensors_codec import MAX_HEADER_BYTES, WireError

MAX_NAME = 64
"""The most characters of the random name of a function's process."""
MAX_REPORTED = 1 << 50
"""The largest number in a residency report: a petabyte."""


def max_answer_bytes(invocation: Invocation) -> int:
    """The most bytes of a good answer's body: as many numbers as there were sent, and a header."""
    return 8 + MAX_HEADER_BYTES + invocation.hidden_states.nbytes


def read_result(invocation: Invocation, body: bytearray, elapsed: float) -> InvocationResult:
    """The answer to an invocation that was sent `elapsed` seconds ago.

    Raises `WireError` for an answer that cannot be right. Times and counts that a tenant pays for are lowered
    to what is possible: the answer may be right all the same.
    """
    result = InvocationResult.decode(body)
    expected = invocation.hidden_states
    if result.output.shape != expected.shape or result.output.dtype != expected.dtype:
        raise WireError(f"output is {result.output.dtype} {list(result.output.shape)}")
    if len(result.instance) > MAX_NAME:
        raise WireError(f"instance has {len(result.instance)} characters")
    if result.residency is not None and max(vars(result.residency).values()) > MAX_REPORTED:
        raise WireError(f"residency: {result.residency}")
    return replace(
        result,
        seconds=min(result.seconds, elapsed),
        cold_experts=possibly_cold(invocation, result.cold_experts),
    )


def output_for(invocation: Invocation) -> NDArray[Any]:
    """Where the output of a plain answer belongs: an array [T, H] of any content."""
    return np.empty(invocation.hidden_states.shape, invocation.hidden_states.dtype)


def plain_result(
    invocation: Invocation, answer: PlainAnswer, output: NDArray[Any], elapsed: float
) -> InvocationResult:
    """The result of an answer that `plain_calls` has read; believes no more of it than `read_result` does."""
    cold = possibly_cold(invocation, answer.cold_experts)
    return InvocationResult(output, answer.instance, answer.address, min(answer.seconds, elapsed), cold)


def possibly_cold(invocation: Invocation, claimed: int) -> int:
    """How many experts the function may have read: no more than were called."""
    return min(claimed, _count_experts(invocation)) if claimed else 0


def _count_experts(invocation: Invocation) -> int:
    experts = np.unique(invocation.expert_index)
    return int((experts >= 0).sum())
