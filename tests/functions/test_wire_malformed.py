"""What is not exactly one message raises WireError, and never anything else."""

import contextlib
import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.contract.wire import (
    MAX_HEADER_BYTES,
    Invocation,
    InvocationResult,
    ResidencyReport,
    WireError,
    decode,
    encode,
)


def raw(header: Any, data: bytes = b"") -> bytes:
    """A message with any header: JSON of it, or its bytes as they are."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


MALFORMED: dict[str, bytes] = {
    "nothing": b"",
    "no header": b"\0" * 7,
    "an empty header": raw(b""),
    "half a header": raw({"x": tensor()}, b"1234")[:20],
    "half a tensor": raw({"x": tensor()}, b"12"),
    "more than the tensors": raw({"x": tensor()}, b"12345"),
    "a header longer than the body": struct.pack("<Q", 1 << 40) + b"{}",
    "a header longer than any": struct.pack("<Q", (1 << 64) - 1) + b"{}",
    "a header over the limit": raw(b"{}" + b" " * MAX_HEADER_BYTES),
    "a header that is not JSON": raw(b"{'x': 1}"),
    "a header that is not UTF-8": raw(b'{"\xff": 1}'),
    "a list": raw([]),
    "a number": raw(1),
    "null": raw(None),
    "deep nesting": raw(b"[" * MAX_HEADER_BYTES),
    "deep nesting in a tensor": raw(b'{"x":' * 13000),
    "metadata that is a list": raw({"__metadata__": ["layer"]}),
    "metadata that is null": raw({"__metadata__": None}),
    "metadata of a number": raw({"__metadata__": {"layer": 1}}),
    "metadata of a list": raw({"__metadata__": {"layer": ["1"]}}),
    "a tensor that is a number": raw({"x": 1}),
    "a tensor that is null": raw({"x": None}),
    "a tensor that is text": raw({"x": "F32"}),
    "a tensor without dtype": raw({"x": {"shape": [1], "data_offsets": [0, 4]}}, b"1234"),
    "a tensor without shape": raw({"x": {"dtype": "F32", "data_offsets": [0, 4]}}, b"1234"),
    "a tensor without offsets": raw({"x": {"dtype": "F32", "shape": [1]}}, b"1234"),
    "a dtype in lower case": raw({"x": tensor("f32")}, b"1234"),
    "a dtype of no message": raw({"x": tensor("I32")}, b"1234"),
    "a dtype that is null": raw({"x": tensor(None)}, b"1234"),
    "a dtype that is a list": raw({"x": tensor(["F32"])}, b"1234"),
    "a negative size": raw({"x": tensor(shape=[-1])}, b"1234"),
    "two negative sizes": raw({"x": tensor(shape=[-1, -1])}, b"1234"),
    "a size that is a float": raw({"x": tensor(shape=[1.0])}, b"1234"),
    "a size that is true": raw({"x": tensor(shape=[True])}, b"1234"),
    "a size that is text": raw({"x": tensor(shape=["1"])}, b"1234"),
    "a shape that is a number": raw({"x": tensor(shape=1)}, b"1234"),
    "a shape that is null": raw({"x": tensor(shape=None)}, b"1234"),
    "a shape that is text": raw({"x": tensor(shape="")}, b"1234"),
    "a shape that is an object": raw({"x": tensor(shape={})}, b"1234"),
    "a shape of too many sizes": raw({"x": tensor(shape=[1] * 100)}, b"1234"),
    "a shape that is not the offsets'": raw({"x": tensor(shape=[2])}, b"1234"),
    "a shape beyond all memory": raw({"x": tensor(shape=[1 << 70], offsets=[0, 1 << 72])}, b"1234"),
    "a shape beyond all memory, times zero": raw({"x": tensor(shape=[1 << 70, 0], offsets=[0, 0])}),
    "a size of 5000 digits": raw(
        b'{"x":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}'
    ),
    "offsets that are floats": raw({"x": tensor(offsets=[0, 4.0])}, b"1234"),
    "offsets that are booleans": raw({"x": tensor(offsets=[False, 4])}, b"1234"),
    "offsets that are not numbers": raw({"x": tensor(offsets=[0, float("nan")])}, b"1234"),
    "offsets that are text": raw({"x": tensor(offsets="04")}, b"1234"),
    "one offset": raw({"x": tensor(offsets=[0])}, b"1234"),
    "three offsets": raw({"x": tensor(offsets=[0, 4, 4])}, b"1234"),
    "offsets in reverse": raw({"x": tensor(offsets=[4, 0])}, b"1234"),
    "negative offsets": raw({"x": tensor(offsets=[-4, 0])}, b"1234"),
    "offsets behind the end": raw({"x": tensor(offsets=[4, 8])}, b"1234"),
    "offsets that mix kinds": raw({"x": tensor(), "y": tensor(offsets=["4", "8"])}, b"12345678"),
    "a gap": raw({"x": tensor(), "y": tensor(offsets=[8, 12])}, b"123456789012"),
    "an overlap": raw({"x": tensor(), "y": tensor(offsets=[2, 6])}, b"123456"),
    "the same place twice": raw({"x": tensor(), "y": tensor()}, b"1234"),
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_anything_else_is_no_message(body: bytes) -> None:
    with pytest.raises(WireError):
        decode(body)


def read_all(body: bytes) -> None:
    """Read `body` in each way there is; nothing but `WireError` may come of it."""
    for read in (decode, Invocation.decode, InvocationResult.decode):
        with contextlib.suppress(WireError):
            read(body)


@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_else(body: bytes) -> None:
    read_all(body)
    read_all(raw(body))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["F32", "BF16", "I16", ""]),
    lambda value: st.lists(value, max_size=3) | st.dictionaries(st.text(max_size=2), value, max_size=3),
    max_leaves=5,
)
ENTRIES = st.fixed_dictionaries({}, optional={"dtype": JSON, "shape": JSON, "data_offsets": JSON})


@given(st.dictionaries(st.sampled_from(["__metadata__", "output", "hidden_states"]), ENTRIES | JSON))
def test_headers_of_any_json_raise_nothing_else(header: dict[str, Any]) -> None:
    read_all(raw(header, b"1234"))


# Both an invocation and a result.
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
            **dict.fromkeys(ResidencyReport().to_json(), "2"),
        },
    )
)


def test_the_message_that_is_changed_below_is_one() -> None:
    assert Invocation.decode(MESSAGE).layer == 7
    assert InvocationResult.decode(MESSAGE).seconds == 0.25


@given(st.lists(st.tuples(st.integers(0, len(MESSAGE) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_changed_message_raises_nothing_else(changes: list[tuple[int, int]]) -> None:
    body = bytearray(MESSAGE)
    for position, byte in changes:
        body[position] = byte
    read_all(bytes(body))


@given(st.integers(0, len(MESSAGE) - 1))
def test_a_message_that_was_cut_is_none(length: int) -> None:
    with pytest.raises(WireError):
        decode(MESSAGE[:length])
