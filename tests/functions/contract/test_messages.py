"""Invocations and results survive encoding and decoding, and malformed ones raise nothing but `WireError`."""

import contextlib
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.contract.messages import REPORTED, Invocation, InvocationResult, ResidencyReport
from functions.contract.safetensors_codec import WireError, decode, encode
from tests.support.functions.messages import joined, raw, same

INVOCATION = Invocation(
    layer=7,
    model="f" * 64,
    hidden_states=np.arange(6, dtype=np.float32).reshape(2, 3),
    expert_index=np.array([[1, -1], [0, 2]], np.int16),
    expert_weight=np.array([[0.5, 0.0], [0.25, 0.75]], np.float32),
)
RESULT = InvocationResult(
    output=np.ones((2, 3), np.uint16),
    instance="a1",
    address="10.0.0.1:8080",
    seconds=0.25,
    cold_experts=1,
    residency=ResidencyReport(
        **{report_field.name: number for number, report_field in enumerate(fields(ResidencyReport))}
    ),
    kernel="avx2",
)


def test_invocations_and_results_survive_encoding_and_decoding() -> None:
    invocation = Invocation.decode(joined(INVOCATION.encode()))
    assert (invocation.layer, invocation.model) == (7, "f" * 64)
    assert (invocation.resident_limit, invocation.prefetch) == (None, {})
    for name in ("hidden_states", "expert_index", "expert_weight"):
        assert same(getattr(invocation, name), getattr(INVOCATION, name))
    result = InvocationResult.decode(joined(RESULT.encode()))
    assert same(result.output, RESULT.output)
    assert replace(result, output=RESULT.output) == RESULT


def test_a_result_may_lack_the_name_of_the_kernel() -> None:
    assert InvocationResult.decode(joined(replace(RESULT, kernel=None).encode())).kernel is None
    # It comes with a report only.
    assert InvocationResult.decode(joined(replace(RESULT, residency=None).encode())).kernel is None


@pytest.mark.parametrize("name", ["", "x" * 33, "avx 2", "\x1b[2J", "AVX"])
def test_the_name_of_the_kernel_is_checked(name: str) -> None:
    with pytest.raises(WireError, match="kernel"):
        InvocationResult.decode(joined(replace(RESULT, kernel=name).encode()))


def test_a_result_may_lack_its_report_but_no_part_of_it() -> None:
    assert InvocationResult.decode(joined(replace(RESULT, residency=None).encode())).residency is None
    message = decode(joined(RESULT.encode()))
    for name in REPORTED:
        partly = {key: value for key, value in message.metadata.items() if key != name}
        with pytest.raises(WireError, match=name):
            InvocationResult.decode(joined(encode(message.tensors, partly)))


@pytest.mark.parametrize(
    "change",
    [
        {"wire": "2"},
        {"wire": ""},
        {"layer": "-1"},
        {"layer": "1.0"},
        {"layer": ""},
        {"layer": "²"},
        {"layer": "9" * 5000},
        {"resident_limit": "-1"},
        {"resident_limit": "many"},
        {"prefetch": "5"},
        {"prefetch": "5:"},
        {"prefetch": "5:1;"},
        {"prefetch": "5:1,x"},
        {"prefetch": "a:1"},
    ],
    ids=lambda change: str(change)[:20],
)
def test_malformed_metadata_of_an_invocation_is_refused(change: dict[str, str]) -> None:
    message = decode(joined(INVOCATION.encode()))
    with pytest.raises(WireError, match=next(iter(change))):
        Invocation.decode(joined(encode(message.tensors, {**message.metadata, **change})))


def test_an_invocation_can_carry_a_limit_and_a_prefetch() -> None:
    sent = replace(INVOCATION, resident_limit=0, prefetch={7: [2, 0], 11: [59]})
    received = Invocation.decode(joined(sent.encode()))
    assert (received.resident_limit, received.prefetch) == (0, {7: [2, 0], 11: [59]})


@pytest.mark.parametrize("prefetch", [{8: [1]}, {}])
def test_an_invocation_may_lack_rows(prefetch: dict[int, list[int]]) -> None:
    nothing = {
        name: getattr(INVOCATION, name)[:0] for name in ("hidden_states", "expert_index", "expert_weight")
    }
    received = Invocation.decode(joined(replace(INVOCATION, **nothing, prefetch=prefetch).encode()))
    assert received.hidden_states.shape == (0, INVOCATION.hidden_states.shape[1])
    assert received.prefetch == prefetch


@pytest.mark.parametrize(
    "name",
    ["instance", "address", "seconds", "cold_experts", *(f.name for f in fields(ResidencyReport))],
)
def test_a_result_needs_all_its_metadata(name: str) -> None:
    message = decode(joined(RESULT.encode()))
    left = {key: value for key, value in message.metadata.items() if key != name}
    with pytest.raises(WireError, match=name):
        InvocationResult.decode(joined(encode(message.tensors, left)))


@pytest.mark.parametrize("name", ["hidden_states", "expert_index", "expert_weight"])
def test_an_invocation_needs_all_its_tensors(name: str) -> None:
    message = decode(joined(INVOCATION.encode()))
    left = {key: value for key, value in message.tensors.items() if key != name}
    with pytest.raises(WireError, match=name):
        Invocation.decode(joined(encode(left, message.metadata)))


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1", "1e300", "1e6"])
def test_an_impossible_time_is_refused(seconds: str) -> None:
    """Tenants' accounts would add it up."""
    message = decode(joined(RESULT.encode()))
    with pytest.raises(WireError, match="seconds"):
        InvocationResult.decode(joined(encode(message.tensors, {**message.metadata, "seconds": seconds})))


def read_all(body: bytes) -> None:
    """Decode `body` in every way; lets any error but `WireError` pass."""
    for read in (decode, Invocation.decode, InvocationResult.decode):
        with contextlib.suppress(WireError):
            read(body)


@given(st.binary(max_size=200))
def test_random_bytes_raise_only_wire_errors(body: bytes) -> None:
    read_all(body)
    read_all(raw(body))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["F32", "BF16", "I16", ""]),
    lambda value: st.lists(value, max_size=3) | st.dictionaries(st.text(max_size=2), value, max_size=3),
    max_leaves=5,
)
ENTRIES = st.fixed_dictionaries({}, optional={"dtype": JSON, "shape": JSON, "data_offsets": JSON})


@given(st.dictionaries(st.sampled_from(["__metadata__", "output", "hidden_states"]), ENTRIES | JSON))
def test_headers_of_any_json_raise_only_wire_errors(header: dict[str, Any]) -> None:
    read_all(raw(header, b"1234"))


MESSAGE = b"".join(
    encode(
        {
            "hidden_states": np.ones((2, 3), np.float32),
            "expert_index": np.array([[1, -1], [0, 2]], np.int16),
            "expert_weight": np.ones((2, 2), np.float32),
            "output": np.ones((2, 3), np.uint16),
        },
        {
            "layer": "7",
            "model": "f" * 64,
            "wire": "1",
            "instance": "a1",
            "address": "10.0.0.1:8080",
            "seconds": "0.25",
            "cold_experts": "1",
            "prefetch": "8:1,2",
            **dict.fromkeys(asdict(ResidencyReport()), "2"),
        },
    )
)
"""Both an invocation and a result."""


def test_the_fuzzed_message_is_valid() -> None:
    assert Invocation.decode(MESSAGE).layer == 7
    assert InvocationResult.decode(MESSAGE).seconds == 0.25


@given(st.lists(st.tuples(st.integers(0, len(MESSAGE) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_changed_message_raises_only_wire_errors(changes: list[tuple[int, int]]) -> None:
    body = bytearray(MESSAGE)
    for position, byte in changes:
        body[position] = byte
    read_all(bytes(body))


@given(st.integers(0, len(MESSAGE) - 1))
def test_a_truncated_message_is_refused(length: int) -> None:
    with pytest.raises(WireError):
        decode(MESSAGE[:length])
