"""All types of blocks hold what llama.cpp's library says; some go into packed types without loss."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from control_plane.partition.checkpoint.gguf.blocks import BLOCK_TYPES
from control_plane.partition.checkpoint.gguf.container import read_header
from control_plane.partition.checkpoint.gguf.tensors import tensors_of
from control_plane.partition.checkpoint.tensors.tensor import Tensor
from functions.kernels.packed_matrix import LinearShape, pack_matrix, packed_parts, plain_rows, unpack_matrix
from functions.kernels.packed_tiles import Quantised
from functions.kernels.packed_types import packed_type
from tests.support.models.gguf_files import Kind, Stored, random_blocks, write_gguf

KINDS = [kind.name for kind in BLOCK_TYPES.values()]
LOSSLESS = {
    "Q4_0": "int4",
    "Q5_0": "int8",
    "Q8_0": "int8",
    "Q4_K": "int4_min",
    "IQ4_NL": "int4_nl",
    "MXFP4": "mxfp4",
}


def written(folder: Path, stored: Stored) -> Tensor:
    file = write_gguf(folder / "tensor.gguf", "llama", {}, {"a.weight": stored})
    return tensors_of([read_header(file)])["a.weight"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def stored(kind: str) -> Stored:
    return random_blocks(kind, (3, 21, 512), np.random.default_rng(0))


def test_sizes(kind: str) -> None:
    block = BLOCK_TYPES[Kind[kind].value]
    assert (block.block_values, block.block_nbytes) == gguf.GGML_QUANT_SIZES[Kind[kind]]


def test_values(stored: Stored, tmp_path: Path) -> None:
    tensor, wanted = written(tmp_path, stored), stored.values
    assert tensor.shape == wanted.shape
    assert np.array_equal(tensor.read(0, tensor.size).reshape(wanted.shape), wanted)
    assert np.array_equal(tensor.rows(20, 3), wanted.reshape(-1, 512)[20:23])
    assert np.array_equal(tensor.read(700, 1000), wanted.reshape(-1)[700:1700])


def test_values_in_chunks(stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("control_plane.partition.checkpoint.tensors.tensor.CHUNK_VALUES", 1100)
    tensor = written(tmp_path, stored)
    assert np.array_equal(np.concatenate(list(tensor.chunks())), stored.values.reshape(-1))


def test_rows_in_the_nearest_type(kind: str, stored: Stored, tmp_path: Path) -> None:
    tensor = written(tmp_path, stored)
    assert tensor.stored_type is not None
    packed_type(tensor.stored_type)
    rows = tensor.read_quantised(20, 40)
    assert (rows is not None) == (kind in LOSSLESS)
    if rows is not None:
        shape = LinearShape(40, 512, LOSSLESS[kind])
        assert tensor.stored_type == shape.dtype
        assert np.array_equal(plain_rows(shape, rows), stored.values.reshape(-1, 512)[20:60])


@pytest.mark.parametrize("kind", LOSSLESS)
def test_rows_are_packed_without_loss(kind: str, stored: Stored, tmp_path: Path) -> None:
    tensor, shape = written(tmp_path, stored), LinearShape(63, 512, LOSSLESS[kind])

    def rows(start: int, stop: int) -> Quantised:
        found = tensor.packable_rows(start, stop - start, shape.dtype)
        assert isinstance(found, Quantised)
        return found

    packed = np.concatenate(list(packed_parts(shape, rows)))
    assert np.array_equal(unpack_matrix(shape, packed), stored.values.reshape(-1, 512))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in LOSSLESS])
def test_rows_of_the_other_types_are_near(kind: str, stored: Stored, tmp_path: Path) -> None:
    """The errors are those of the packed type, of some of its steps at most."""
    tensor = written(tmp_path, stored)
    assert tensor.stored_type is not None
    shape = LinearShape(63, 512, tensor.stored_type)
    wanted = tensor.rows(0, 63)
    found = unpack_matrix(shape, pack_matrix(shape, wanted))
    groups = np.abs(wanted).reshape(63, -1, 32).max(axis=2)
    worst = {"int8": 0.006, "int4_min": 0.15, "int4_nl": 0.15}[tensor.stored_type]
    assert (
        np.abs(found - wanted).reshape(63, -1, 32).max(axis=2) <= worst * groups.max(axis=1)[:, None]
    ).all()


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q4_K", "IQ4_NL"])
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_scales_that_are_not_finite(kind: str, value: float, tmp_path: Path) -> None:
    stored = random_blocks(kind, (32, 256), np.random.default_rng(0))
    stored.data[7, :2] = np.array([value], np.float16).view(np.uint8)
    tensor, shape = written(tmp_path, stored), LinearShape(32, 256, LOSSLESS[kind])
    with pytest.raises(ValueError, match="weights are not finite"):
        list(packed_parts(shape, lambda start, stop: tensor.packable_rows(start, stop - start, shape.dtype)))
