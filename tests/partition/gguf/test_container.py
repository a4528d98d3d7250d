"""Headers of GGUF files are read as they were written; malformed ones are refused with one error."""

import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from control_plane.errors import PartitionError, UnsupportedModel
from control_plane.partition.checkpoint.gguf.container import read_header
from control_plane.partition.checkpoint.gguf.files import gguf_files, model_name
from control_plane.partition.checkpoint.gguf.tensors import tensors_of
from tests.support.models.gguf_files import plain, quantised, write_gguf

VALUES = np.arange(96, dtype=np.float32).reshape(3, 32)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    metadata: dict[str, Any] = {
        "number": 7,
        "fraction": 1e-6,
        "flag": True,
        "general.name": "näm",
        "tokenizer.ggml.tokens": ["a", "b", "ö"],
        "tokenizer.ggml.token_type": [1, 2, 3],
        "tokenizer.ggml.scores": [0.5, -1.5, 0.0],
    }
    tensors = {"one": plain(VALUES), "two": quantised(VALUES, "Q8_0")}
    return write_gguf(tmp_path / "model.gguf", "llama", metadata, tensors)


def test_metadata(file: Path) -> None:
    metadata = read_header(file).metadata
    assert metadata["general.architecture"] == "llama"
    assert metadata["llama.number"] == 7
    assert metadata["llama.fraction"] == 1e-6
    assert metadata["llama.flag"] is True
    assert metadata["general.name"] == "näm"
    assert metadata["tokenizer.ggml.tokens"] == ["a", "b", "ö"]
    assert metadata["tokenizer.ggml.token_type"].tolist() == [1, 2, 3]
    assert metadata["tokenizer.ggml.scores"].tolist() == [0.5, -1.5, 0.0]


def test_tensors(file: Path) -> None:
    tensors = tensors_of([read_header(file)])
    assert np.array_equal(tensors["one"].rows(0, 3), VALUES)
    assert tensors["two"].shape == (3, 32)
    assert tensors["two"].stored_type == "int8"


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.6, 0.9, 0.95])
def test_truncated(file: Path, share: float) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(PartitionError, match=str(file)):
        tensors_of([read_header(file)])


def test_every_byte_may_be_wrong(file: Path) -> None:
    data = file.read_bytes()
    for place in range(read_header(file).tensors[0].offset):
        for bits in (0xFF, 0x80, 0x01):
            changed = bytearray(data)
            changed[place] ^= bits
            file.write_bytes(changed)
            # No other error, and no long wait.
            with suppress(PartitionError):
                tensors_of([read_header(file)])


def header(tensors: int = 0, entries: int = 0, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + rest


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def entry(kind: int, value: bytes, key: bytes = b"key") -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(*shape: int, kind: int = 0, offset: int = 0, name: bytes = b"w") -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "it ends"),
        (b"PK\x03\x04" + b"\0" * 40, "magic number"),
        (header(tensors=1 << 60), "it says that it has"),
        (header(entries=1 << 60), "it says that it has"),
        (header(entries=1, rest=b"\xff" * 40), "a string of"),
        (header(entries=1, rest=entry(9, struct.pack("<IQ", 8, 1 << 50))), "strings"),
        (header(entries=1, rest=entry(9, struct.pack("<IQ", 4, 1 << 50))), "elements"),
        (header(entries=1, rest=entry(9, struct.pack("<IQ", 9, 1))), "array of type 9"),
        (header(entries=1, rest=entry(77, b"")), "type 77"),
        (header(entries=1, rest=entry(8, text(b"\xff\xfe"))), "not UTF-8"),
        (header(entries=2, rest=entry(0, b"\1") * 2), "twice"),
        (header(tensors=1, rest=tensor()), "0 dimensions"),
        (header(tensors=1, rest=tensor(*[1] * 9)), "9 dimensions"),
        (header(tensors=1, rest=tensor(0, 4)), "at byte"),
        (header(tensors=1, rest=tensor(1 << 63)), "at byte"),
        (header(tensors=2, rest=tensor(1) * 2), "two tensors of one name"),
        (header(entries=1, rest=entry(4, struct.pack("<I", 0), b"general.alignment")), "alignment is 0"),
    ],
)
def test_malformed_headers(tmp_path: Path, data: bytes, problem: str) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(data)
    with pytest.raises(PartitionError, match=problem) as caught:
        read_header(file)
    assert str(caught.value).startswith(f"{file} ")


@pytest.mark.parametrize(
    ("data", "kind", "problem"),
    [
        (header(tensors=1, rest=tensor(1 << 40)), PartitionError, "has rows of"),
        (header(tensors=1, rest=tensor(32, 1 << 40)), PartitionError, "is truncated"),
        (header(tensors=1, rest=tensor(33, kind=8)), PartitionError, "is Q8_0, but has rows of 33 values"),
        (
            header(tensors=1, rest=tensor(32, kind=16)),
            UnsupportedModel,
            "is of type 16; these can be read: F32",
        ),
        (header(tensors=2, rest=tensor(8) + tensor(8, name=b"v")), PartitionError, "overlaps its neighbour"),
        (header(version=9), UnsupportedModel, "is of version 9 of GGUF"),
    ],
)
def test_tensors_that_cannot_be_read(
    tmp_path: Path, data: bytes, kind: type[PartitionError], problem: str
) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(data + bytes(64))
    with pytest.raises(kind, match=problem):
        tensors_of([read_header(file)])


def test_files_of_a_model(tmp_path: Path) -> None:
    names = [f"big-Q4_0-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    for name in [*names, "mmproj-big.gguf"]:
        (tmp_path / name).touch()
    files = [tmp_path / name for name in names]
    assert gguf_files(tmp_path) == gguf_files(files[1]) == files
    assert model_name(files[1]) == "big-Q4_0"
    files[1].unlink()
    with pytest.raises(PartitionError, match=r"00002-of-00003\.gguf is missing: the model has 3 files"):
        gguf_files(tmp_path)


def test_a_folder_of_several_models(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(PartitionError, match=r"has several models: name the file of one of them \(a.gguf, b"):
        gguf_files(tmp_path)
    assert gguf_files(tmp_path / "a.gguf") == [tmp_path / "a.gguf"]
    assert model_name(tmp_path / "a.gguf") == "a"


def test_a_folder_with_safetensors_is_no_gguf_model(tmp_path: Path) -> None:
    for name in ("a.gguf", "model.safetensors"):
        (tmp_path / name).touch()
    assert gguf_files(tmp_path) == []
