"""Bad weights and arguments are refused with an error that names the fault, and leave no files behind."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from control_plane.errors import ConfigError, PartitionError, UnsupportedModel
from control_plane.partition.granularity import Granularity
from control_plane.partition.partitioner import partition
from tests.support.models.checkpoints import (
    edit_config,
    refusal,
    save_checkpoint,
    save_fused_checkpoint,
    tiny_model,
)

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
UP = "model.layers.1.mlp.experts.3.up_proj.weight"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    model = tiny_model("qwen2_moe")
    save_checkpoint(model, folder / "single")
    save_checkpoint(model, folder / "sharded", max_shard_size="40KB")
    save_fused_checkpoint(model, folder / "fused")
    return folder


@pytest.fixture
def checkpoint(originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals / "single", tmp_path / "in" / "single"))


@pytest.fixture
def sharded(originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals / "sharded", tmp_path / "in" / "sharded"))


@pytest.fixture
def fused(originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals / "fused", tmp_path / "in" / "fused"))


def edit_tensors(checkpoint: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(checkpoint / WEIGHTS)
    edit(tensors)
    save_file(tensors, checkpoint / WEIGHTS, metadata={"format": "pt"})


def edit_header(checkpoint: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    data = (checkpoint / WEIGHTS).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    edit(header)
    document = json.dumps(header).encode()
    (checkpoint / WEIGHTS).write_bytes(len(document).to_bytes(8, "little") + document + data[8 + length :])


def test_missing_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    assert refusal(tmp_path / "in" / "nowhere").endswith("nowhere is not a folder")


def test_no_weights(checkpoint: Path) -> None:
    (checkpoint / WEIGHTS).unlink()
    assert f"has neither {WEIGHTS} nor {INDEX}" in refusal(checkpoint)


def test_pickled_weights_are_refused(checkpoint: Path) -> None:
    (checkpoint / WEIGHTS).rename(checkpoint / "pytorch_model.bin")
    assert "only pickled weights" in refusal(checkpoint)


@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
def test_a_pipe_in_place_of_a_file_makes_nobody_wait(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    os.mkfifo(checkpoint / name)
    assert f"{name} is not a regular file" in refusal(checkpoint)


@pytest.mark.parametrize("change", ["missing", "too many", "twice"])
def test_shards_without_an_index_that_do_not_fit_together(sharded: Path, change: str) -> None:
    (sharded / INDEX).unlink()
    shards = sorted(sharded.glob("model-*.safetensors"))
    if change == "missing":
        shards[1].unlink()
        problem = f"of {len(shards)} shards {shards[1].name} is missing"
    elif change == "too many":
        shutil.copy(shards[0], sharded / "model-00001-of-00099.safetensors")
        problem = "is missing or too many"
    else:
        shutil.copy(shards[0], shards[1])
        problem = f"{shards[1]} and {shards[0].name} both have"
    assert problem in refusal(sharded)


def test_missing_shard(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert refusal(sharded) == f"cannot read {shard}: No such file or directory"


def test_index_names_a_tensor_that_the_shard_lacks(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    shards = sorted(set(index["weight_map"].values()))
    name = next(name for name, shard in index["weight_map"].items() if shard == shards[0])
    index["weight_map"][name] = shards[1]
    (sharded / INDEX).write_text(json.dumps(index))
    assert refusal(sharded) == f"{sharded / shards[1]} lacks {name!r}, which {INDEX} says it has"


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", 5, "a/../b"])
def test_index_names_a_file_elsewhere(sharded: Path, shard: Any) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = shard
    (sharded / INDEX).write_text(json.dumps(index))
    assert f"'lm_head.weight' is in {shard!r}, which is no file of this folder" in refusal(sharded)


@pytest.mark.parametrize("shard", ["", ".", "..", "a\0b", "\ud800", "x" * 300, "x" * 10**5])
def test_index_names_no_file(sharded: Path, shard: str) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = shard
    (sharded / INDEX).write_text(json.dumps(index))
    assert str(sharded) in refusal(sharded)


@pytest.mark.parametrize("text", ['{"metadata": {}}', '{"weight_map": []}'])
def test_index_without_weight_map(sharded: Path, text: str) -> None:
    (sharded / INDEX).write_text(text)
    assert refusal(sharded) == f"{sharded / INDEX} has no weight_map"


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_truncated_file(checkpoint: Path, kept: int) -> None:
    path = checkpoint / WEIGHTS
    path.write_bytes(path.read_bytes()[:kept])
    message = refusal(checkpoint)
    assert str(path) in message
    assert "is truncated" in message if kept == -1 else "is no safetensors file" in message


def test_bytes_after_the_last_tensor(checkpoint: Path) -> None:
    with (checkpoint / WEIGHTS).open("ab") as file:
        file.write(b"more")
    assert "has bytes too many" in refusal(checkpoint)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 8 + b"{}",
        (200_000_000).to_bytes(8, "little") + b"{}",
        (0).to_bytes(8, "little"),
        (6).to_bytes(8, "little") + b"[1, 2]",
        (6).to_bytes(8, "little") + b"{'a':1",
        (6).to_bytes(8, "little") + b"\xff\xfe\x00\x01\x02\x03",
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
    ],
    ids=["absurd length", "long", "empty", "array", "not JSON", "not UTF-8", "deep"],
)
def test_garbage_header(checkpoint: Path, data: bytes) -> None:
    (checkpoint / WEIGHTS).write_bytes(data)
    assert f"{checkpoint / WEIGHTS} is no safetensors file" in refusal(checkpoint)


def shift(tensor: str, begin: int, end: int) -> Callable[[dict[str, Any]], None]:
    def edit(header: dict[str, Any]) -> None:
        offsets = header[tensor]["data_offsets"]
        header[tensor]["data_offsets"] = [offsets[0] + begin, offsets[1] + end]

    return edit


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (shift(UP, -4, -4), "overlaps its neighbour or leaves a hole"),
        (shift(UP, 4, 4), "overlaps its neighbour or leaves a hole"),
        (shift(UP, 0, 10**12), "does not fit its bytes"),
        (shift(UP, -(10**12), -(10**12)), "does not fit its bytes"),
        (lambda header: header[UP].update(shape=[20, 25]), "does not fit its bytes"),
        (lambda header: header[UP].update(shape=[-20, -24]), "has the shape"),
        (lambda header: header[UP].update(shape=["20", 24]), "has the shape"),
        (lambda header: header[UP].update(shape=[True, 480]), "has the shape"),
        (lambda header: header[UP].update(shape=[10**4000] * 1000), "has the shape"),
        (lambda header: header[UP].update(shape=[10**4000] * 8), "has the shape"),
        (lambda header: header[UP].update(shape=[1] * 10**5), "has the shape"),
        (lambda header: header[UP].update(shape=[2**61] * 8), "does not fit its bytes"),
        (lambda header: header[UP].update(data_offsets=[0, 10**4000]), "does not fit its bytes"),
        (lambda header: header.update({"x" * 10**5: header[UP]}), "is no tensor's name"),
        (lambda header: header.update({"a\nb": header[UP]}), "is no tensor's name"),
        (lambda header: header[UP].pop("dtype"), "malformed"),
        (lambda header: header[UP].update(data_offsets=[0]), "malformed"),
        (lambda header: header.update({UP: 3}), "malformed"),
    ],
)
def test_inconsistent_header(checkpoint: Path, edit: Callable[[dict[str, Any]], Any], problem: str) -> None:
    edit_header(checkpoint, edit)
    message = refusal(checkpoint)
    assert problem in message
    assert str(checkpoint / WEIGHTS) in message
    assert len(message) < 600


@pytest.mark.parametrize("dtype", ["F64", "U16", "BOOL", "Q4_0"])
def test_other_dtypes_are_refused_by_name(checkpoint: Path, dtype: str) -> None:
    edit_header(checkpoint, lambda header: header[UP].update(dtype=dtype))
    message = refusal(checkpoint, UnsupportedModel)
    assert message == (f"{checkpoint / WEIGHTS}: {UP} has dtype {dtype}; only F32, F16 and BF16 can be split")


def test_missing_expert_tensor(checkpoint: Path) -> None:
    edit_tensors(checkpoint, lambda tensors: tensors.pop(UP))
    assert refusal(checkpoint) == f"{checkpoint}: the checkpoint lacks {UP}"


def test_missing_fused_tensor(fused: Path) -> None:
    edit_tensors(fused, lambda tensors: tensors.pop("model.layers.1.mlp.experts.down_proj"))
    assert refusal(fused) == f"{fused}: the checkpoint lacks model.layers.1.mlp.experts.down_proj"


def test_expert_of_another_shape(checkpoint: Path) -> None:
    edit_tensors(checkpoint, lambda tensors: tensors.update({UP: torch.zeros(24, 20)}))
    assert refusal(checkpoint) == f"{checkpoint}: {UP} is [24, 20], others of its kind [20, 24]"


def test_fused_experts_of_another_shape(fused: Path) -> None:
    edit_config(fused, moe_intermediate_size=10)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    assert f"{name} is [5, 20, 24] by config.json, the checkpoint's {name} [5, 40, 24]" in refusal(fused)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("experts.5.up_proj.weight", "the checkpoint lacks model.layers.1.mlp.experts.5.gate_proj.weight"),
        (
            "experts.3.up_proj.bias",
            "by its config.json, a qwen2_moe model has no model.layers.1.mlp.experts.3.up_proj.bias",
        ),
    ],
)
def test_expert_tensor_that_is_not_known(checkpoint: Path, name: str, problem: str) -> None:
    edit_tensors(
        checkpoint, lambda tensors: tensors.update({f"model.layers.1.mlp.{name}": torch.zeros(20, 24)})
    )
    assert refusal(checkpoint) == f"{checkpoint}: {problem}"


@pytest.mark.parametrize("name", ["mtp.layers.0.mlp.experts.0.up_proj.weight", "model.layers.3.norm.weight"])
def test_tensors_of_what_is_not_served_are_left_out(checkpoint: Path, tmp_path: Path, name: str) -> None:
    """Layers that predict several tokens at once, for example."""
    edit_tensors(checkpoint, lambda tensors: tensors.update({name: torch.zeros(20, 24)}))
    partition(checkpoint, tmp_path / "out")
    assert name not in load_file(tmp_path / "out" / "dense.safetensors")


def test_experts_in_a_layer_that_should_have_none(checkpoint: Path) -> None:
    edit_config(checkpoint, mlp_only_layers=[1])
    assert "by its config.json, a qwen2_moe model has no model.layers.1.mlp." in refusal(checkpoint)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(checkpoint: Path, value: float) -> None:
    edit_tensors(checkpoint, lambda tensors: tensors[UP].fill_(value))
    assert f"{checkpoint / WEIGHTS}: expert 3 of layer 1: weights are not finite" in refusal(checkpoint)


@pytest.mark.parametrize("dtype", ["fp8", "F32", ""])
def test_unknown_target_dtype(checkpoint: Path, dtype: str) -> None:
    message = refusal(checkpoint, ConfigError, dtype=dtype)
    assert message == f"dtype must be one of auto, f32, bf16, int8, int4, not {dtype!r}"


def test_granularity_that_the_model_does_not_have(checkpoint: Path) -> None:
    message = refusal(checkpoint, ConfigError, granularity=Granularity(6, 1))
    assert message == "experts per function must be from 1 to 5 for this model, not 6"


def test_an_existing_folder_is_not_overwritten(checkpoint: Path) -> None:
    out = checkpoint.parent / "out"
    out.mkdir()
    (out / "precious").write_text("data")
    assert refusal(checkpoint) == f"{out} exists already: remove it, or choose another folder"
    assert (out / "precious").read_text() == "data"


def test_a_folder_that_cannot_be_created(checkpoint: Path) -> None:
    with pytest.raises(PartitionError, match=r"cannot write .*Not a directory"):
        partition(checkpoint, checkpoint / "config.json" / "below-a-file")


def test_too_little_disk_space(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(checkpoint)._replace(free=10_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert "0.0 GB free" in refusal(checkpoint)
