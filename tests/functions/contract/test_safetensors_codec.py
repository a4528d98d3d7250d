"""The codec agrees with the safetensors library, and refuses malformed messages with `WireError`."""

import struct
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

from functions.contract.safetensors_codec import MAX_HEADER_BYTES, WireError, decode, encode
from tests.support.functions.messages import joined, raw, same

SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)
ARRAYS = st.one_of([hnp.arrays(np.dtype(name), SHAPES) for name in ("<f4", "<i2", "<u2")])
TENSORS = st.dictionaries(st.text(max_size=8), ARRAYS, max_size=3)
METADATA = st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=4)


@given(TENSORS, METADATA)
def test_messages_survive_encoding_and_decoding(
    tensors: dict[str, NDArray[Any]], metadata: dict[str, str]
) -> None:
    tensors.pop("__metadata__", None)
    message = decode(joined(encode(tensors, metadata)))
    assert message.metadata == metadata
    assert message.tensors.keys() == tensors.keys()
    assert all(same(message.tensors[name], tensors[name]) for name in tensors)


@given(hnp.arrays(np.dtype("<f4"), SHAPES), hnp.arrays(np.dtype("<i2"), SHAPES))
def test_safetensors_reads_encoded_messages(floats: NDArray[Any], integers: NDArray[Any]) -> None:
    body = joined(encode({"integers": integers, "floats": floats}, {"layer": "3"}))
    read = safetensors.numpy.load(body)
    assert same(read["floats"], floats)
    assert same(read["integers"], integers)


@given(hnp.arrays(np.dtype("<f4"), SHAPES), hnp.arrays(np.dtype("<i2"), SHAPES), METADATA)
def test_messages_of_safetensors_are_decoded(
    floats: NDArray[Any], integers: NDArray[Any], metadata: dict[str, str]
) -> None:
    written = safetensors.numpy.save({"integers": integers, "floats": floats}, metadata=metadata)
    message = decode(written)
    assert message.metadata == metadata
    assert same(message.tensors["floats"], floats)
    assert same(message.tensors["integers"], integers)


def test_bf16_has_the_bits_of_torch() -> None:
    values = torch.tensor([[1.5, -2.0, 3e38], [1e-40, float("inf"), float("nan")]], dtype=torch.bfloat16)
    bits = values.view(torch.uint16).numpy()
    read = safetensors.torch.load(joined(encode({"x": bits}, {})))["x"]
    assert read.dtype == torch.bfloat16
    assert torch.equal(read.view(torch.uint16), values.view(torch.uint16))
    assert same(decode(safetensors.torch.save({"x": values})).tensors["x"], bits)


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_decoded_tensors_are_views_of_the_received_bytes(kind: type) -> None:
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
def test_malformed_messages_are_refused(body: bytes) -> None:
    with pytest.raises(WireError):
        decode(body)
