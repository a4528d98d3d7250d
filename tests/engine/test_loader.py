"""Loading reads the whole dense part and no experts."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from control_plane.engine.loader import load_model
from control_plane.errors import PartitionError
from control_plane.partition.dense import EMBEDDING, PACKED, packed_matrices
from control_plane.partition.manifest import Manifest
from control_plane.partition.model.program import RotationEntry, RouterEntry
from control_plane.partition.partition_files import PartitionFile
from control_plane.partition.partitioner import partition
from tests.support.models.checkpoints import FAMILIES, save_checkpoint, tiny_model
from tests.support.models.modules import modules_of
from tests.support.models.tiny_partition import TinyPartition

pytestmark = pytest.mark.slow

DENSE = "dense.safetensors"


@pytest.fixture
def folder(tiny: TinyPartition, tmp_path: Path) -> Path:
    """A copy of the partition that the test may damage."""
    return Path(shutil.copytree(tiny.folder, tmp_path / "partition"))


@pytest.mark.parametrize("family", FAMILIES)
def test_no_memory_is_allocated_for_experts(family: str, tmp_path: Path) -> None:
    """The parameters are exactly the dense file's tensors. Those of embeddings are read from the file."""
    save_checkpoint(tiny_model(family), tmp_path / "model")
    manifest = partition(tmp_path / "model", tmp_path / "partition", dtype="bf16")
    folder = tmp_path / "partition"
    model = modules_of(folder, manifest)

    # Published Mixtral checkpoints name its MoE block differently from transformers' class.
    tensors = load_file(tmp_path / "partition" / DENSE)
    stored = {name.replace(".block_sparse_moe.", ".mlp."): tensor for name, tensor in tensors.items()}
    parameters = dict(model.named_parameters())
    embedding = stored[EMBEDDING]
    assert torch.equal(model.model.embed_tokens(torch.arange(len(embedding))), embedding)
    assert parameters.keys() == stored.keys()
    for name, parameter in parameters.items():
        assert parameter.dtype == (torch.uint8 if name.endswith(PACKED) else torch.bfloat16)
        assert torch.equal(parameter, stored[name]), name
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])


def test_weights_are_mapped_from_the_file(tiny: TinyPartition) -> None:
    """Processes that serve the same partition therefore share the weights' memory."""
    model = modules_of(tiny.folder, tiny.manifest)
    maps = Path("/proc/self/maps").read_text().splitlines()
    path = str(tiny.folder / DENSE)
    ranges = [line.split()[0].split("-") for line in maps if line.endswith(path)]
    for name, parameter in model.named_parameters():
        address = parameter.data_ptr()
        assert any(int(start, 16) <= address < int(end, 16) for start, end in ranges), name


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("file", "damage", "problem"),
    [
        (DENSE, flip_a_bit, "{path} is damaged"),
        (DENSE, lambda path: path.write_bytes(path.read_bytes()[:-1]), "{path} has"),
        (DENSE, Path.unlink, "cannot read {path}: No such file or directory"),
        ("config.json", lambda path: path.write_text("{"), "{path} is damaged"),
        ("config.json", Path.unlink, "cannot read {path}: No such file or directory"),
    ],
    ids=["flipped bit", "truncated", "missing", "bad config", "missing config"],
)
def test_a_damaged_partition_is_refused_in_one_line(
    tiny: TinyPartition, folder: Path, file: str, damage: Callable[[Path], Any], problem: str
) -> None:
    damage(folder / file)
    with pytest.raises(PartitionError) as caught:
        load_model(folder, tiny.manifest, threads=1)
    assert str(caught.value).startswith(problem.format(path=folder / file, folder=folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"kv_heads": 3}, "fit"),
        ({"head_dim": 1 << 20}, "fit"),
        ({"norm": "model.layers.9.norm.weight"}, "lacks model.layers.9.norm.weight"),
        ({"rotations": (RotationEntry((1.0,) * 100, 1.0, False),)}, "fit"),
        ({"layers": {"attention": "model.layers.9.self_attn"}}, "lacks model.layers.9.self_attn.q_proj"),
        ({"layers": {"ffn_norm": "model.embed_tokens.weight"}}, "ffn_norm"),
        ({"layers": {"router": RouterEntry("lm_head", "softmax", True)}}, "lacks lm_head.weight"),
    ],
    ids=str,
)
def test_a_hostile_program_is_refused_in_one_line(
    tiny: TinyPartition, folder: Path, changes: dict[str, Any], problem: str
) -> None:
    program = tiny.manifest.program
    assert program is not None
    if layer := changes.get("layers"):
        first, *others = program.layers
        changes = {"layers": (msgspec.structs.replace(first, **layer), *others)}
    hostile = msgspec.structs.replace(program, **changes)
    with pytest.raises(PartitionError) as caught:
        load_model(folder, msgspec.structs.replace(tiny.manifest, program=hostile), threads=1)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "packed",
    [
        "[]",
        "1",
        "{",
        '{"a":' * 100_000,
        '{"a": 5}',
        '{"a": ["x"]}',
        '{"a": {"shape": [1]}}',
        '{"a": {"shape": [1], "dtype": "bf16"}}',
    ],
)
def test_hostile_metadata_of_the_dense_file_is_an_error(packed: str) -> None:
    with pytest.raises(PartitionError, match=r"^the dense file's metadata"):
        packed_matrices({"packed": packed}, "f32")


def with_dense(folder: Path, manifest: Manifest, tensors: dict[str, torch.Tensor]) -> Manifest:
    """Replace the dense file's tensors; returns a manifest that matches it."""
    with safe_open(folder / DENSE, "pt") as file:
        metadata = file.metadata()
    save_file(tensors, folder / DENSE, metadata=metadata)
    data = (folder / DENSE).read_bytes()
    dense = PartitionFile(DENSE, len(data), hashlib.sha256(data).hexdigest())
    return msgspec.structs.replace(manifest, dense=dense)


@pytest.mark.parametrize(
    "name",
    [
        "model.norm.weight",
        "model.embed_tokens.weight",
        "model.layers.1.mlp.gate.weight",
        "model.layers.2.input_layernorm.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.mlp.shared_expert_gate.weight",
    ],
)
def test_a_missing_tensor_is_named(tiny: TinyPartition, folder: Path, name: str) -> None:
    tensors = load_file(folder / DENSE)
    del tensors[name]
    manifest = with_dense(folder, tiny.manifest, tensors)
    for load in (programs, reference):
        with pytest.raises(PartitionError) as caught:
            load(folder, manifest)
        assert str(caught.value) == f"{folder / DENSE} lacks {name}"


def programs(folder: Path, manifest: Manifest) -> object:
    return load_model(folder, manifest, threads=1)


def reference(folder: Path, manifest: Manifest) -> object:
    return modules_of(folder, manifest)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.norm.weight", [7]),
        ("model.embed_tokens.weight", [64, 7]),
        ("model.layers.1.mlp.gate.weight", [6, 24]),
        ("model.layers.2.input_layernorm.weight", [23]),
        ("model.layers.0.self_attn.k_proj.bias", [12]),
        ("model.layers.0.mlp.shared_expert_gate.weight", [1, 23]),
    ],
)
def test_a_tensor_of_another_shape_is_refused_in_one_line(
    tiny: TinyPartition, folder: Path, name: str, shape: list[int]
) -> None:
    tensors = load_file(folder / DENSE)
    manifest = with_dense(folder, tiny.manifest, {**tensors, name: torch.ones(shape)})
    with pytest.raises(PartitionError) as caught:
        load_model(folder, manifest, threads=1)
    assert str(caught.value).startswith(f"cannot load the model in {folder}: ")
    assert "\n" not in str(caught.value)
