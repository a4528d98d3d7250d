"""Messages are safetensors, as the safetensors library itself reads and writes it."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from functions.contract.wire import Invocation, InvocationResult, ResidencyReport, WireError, decode, encode

SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)
ARRAYS = st.one_of([hnp.arrays(np.dtype(name), SHAPES) for name in ("<f4", "<i2", "<u2")])
TENSORS = st.dictionaries(st.text(max_size=8), ARRAYS, max_size=3)
METADATA = st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=4)

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
)


def joined(message: list[bytes | memoryview]) -> bytes:
    return b"".join(message)


def same(found: NDArray[Any], wanted: NDArray[Any]) -> bool:
    """Bit by bit: NaN, too."""
    return (found.dtype, found.shape, found.tobytes()) == (wanted.dtype, wanted.shape, wanted.tobytes())


@given(TENSORS, METADATA)
def test_what_is_encoded_is_decoded(tensors: dict[str, NDArray[Any]], metadata: dict[str, str]) -> None:
    tensors.pop("__metadata__", None)
    message = decode(joined(encode(tensors, metadata)))
    assert message.metadata == metadata
    assert message.tensors.keys() == tensors.keys()
    assert all(same(message.tensors[name], tensors[name]) for name in tensors)


@given(hnp.arrays(np.dtype("<f4"), SHAPES), hnp.arrays(np.dtype("<i2"), SHAPES))
def test_safetensors_reads_what_is_encoded(floats: NDArray[Any], integers: NDArray[Any]) -> None:
    body = joined(encode({"integers": integers, "floats": floats}, {"layer": "3"}))
    read = safetensors.numpy.load(body)
    assert same(read["floats"], floats)
    assert same(read["integers"], integers)


@given(hnp.arrays(np.dtype("<f4"), SHAPES), hnp.arrays(np.dtype("<i2"), SHAPES), METADATA)
def test_what_safetensors_writes_is_decoded(
    floats: NDArray[Any], integers: NDArray[Any], metadata: dict[str, str]
) -> None:
    written = safetensors.numpy.save({"integers": integers, "floats": floats}, metadata=metadata)
    message = decode(written)
    assert message.metadata == metadata
    assert same(message.tensors["floats"], floats)
    assert same(message.tensors["integers"], integers)


def test_bf16_is_torchs_bf16() -> None:
    values = torch.tensor([[1.5, -2.0, 3e38], [1e-40, float("inf"), float("nan")]], dtype=torch.bfloat16)
    bits = values.view(torch.uint16).numpy()
    read = safetensors.torch.load(joined(encode({"x": bits}, {})))["x"]
    assert read.dtype == torch.bfloat16
    assert torch.equal(read.view(torch.uint16), values.view(torch.uint16))
    assert same(decode(safetensors.torch.save({"x": values})).tensors["x"], bits)


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_decoded_tensors_are_views_of_what_came(kind: type) -> None:
    body = kind(joined(encode({"x": np.zeros((2, 2), np.float32)}, {})))
    tensor = decode(body).tensors["x"]
    assert np.shares_memory(tensor, np.frombuffer(body, np.uint8))
    assert tensor.flags.writeable == (kind is bytearray)


def test_encoding_copies_no_tensor() -> None:
    values = np.zeros((2, 2), np.float32)
    _, buffer = encode({"x": values}, {})
    assert np.shares_memory(np.frombuffer(buffer, np.uint8), values)


def test_tensors_of_any_memory_order_are_encoded() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    for view in (values.T, values[:, ::2], values[::-1]):
        assert same(decode(joined(encode({"x": view}, {}))).tensors["x"], np.ascontiguousarray(view))


def test_an_invocation_and_its_result_are_read_as_they_were_written() -> None:
    invocation = Invocation.decode(joined(INVOCATION.encode()))
    assert (invocation.layer, invocation.model) == (7, "f" * 64)
    assert (invocation.resident_limit, invocation.prefetch) == (None, {})
    for name in ("hidden_states", "expert_index", "expert_weight"):
        assert same(getattr(invocation, name), getattr(INVOCATION, name))
    result = InvocationResult.decode(joined(RESULT.encode()))
    assert same(result.output, RESULT.output)
    assert replace(result, output=RESULT.output) == RESULT


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
def test_an_invocation_needs_metadata_that_makes_sense(change: dict[str, str]) -> None:
    message = decode(joined(INVOCATION.encode()))
    with pytest.raises(WireError, match=next(iter(change))):
        Invocation.decode(joined(encode(message.tensors, {**message.metadata, **change})))


def test_an_invocation_can_carry_a_limit_and_what_to_expect() -> None:
    sent = replace(INVOCATION, resident_limit=0, prefetch={7: [2, 0], 11: [59]})
    received = Invocation.decode(joined(sent.encode()))
    assert (received.resident_limit, received.prefetch) == (0, {7: [2, 0], 11: [59]})


def test_an_invocation_without_rows_is_for_its_prefetch() -> None:
    nothing = {
        name: getattr(INVOCATION, name)[:0] for name in ("hidden_states", "expert_index", "expert_weight")
    }
    advice = replace(INVOCATION, **nothing, prefetch={8: [1]})
    assert Invocation.decode(joined(advice.encode())).prefetch == {8: [1]}
    with pytest.raises(WireError, match="shapes"):
        Invocation.decode(joined(replace(advice, prefetch={}).encode()))


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
def test_a_time_that_cannot_be_is_refused(seconds: str) -> None:
    """It would be added up in tenants' accounts."""
    message = decode(joined(RESULT.encode()))
    with pytest.raises(WireError, match="seconds"):
        InvocationResult.decode(joined(encode(message.tensors, {**message.metadata, "seconds": seconds})))
