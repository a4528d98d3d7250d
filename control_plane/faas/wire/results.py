"""What is believed of a function's answer. A function may be faulty, or somebody else's."""

from dataclasses import replace

import numpy as np

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
    cold = result.cold_experts and min(result.cold_experts, _count_experts(invocation))
    if result.seconds <= elapsed and cold == result.cold_experts:
        return result
    return replace(result, seconds=min(result.seconds, elapsed), cold_experts=cold)


def _count_experts(invocation: Invocation) -> int:
    experts = np.unique(invocation.expert_index)
    return int((experts >= 0).sum())
