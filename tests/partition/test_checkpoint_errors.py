"""Bad checkpoints and arguments are refused with an error that names the fault, and leave no files behind."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from control_plane.errors import ConfigError, PartitionError, UnsupportedModel
from control_plane.partition.granularity import Granularity
from control_plane.partition.partitioner import partition
from tests.support.checkpoints import save_checkpoint, save_fused_checkpoint, tiny_model

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


def refusal(checkpoint: Path, kind: type[Exception] = PartitionError, **options: Any) -> str:
    """The error for a checkpoint, which must leave the folder unchanged."""
    out = checkpoint.parent / "out"
    before = sorted(checkpoint.parent.iterdir())
    with pytest.raises(kind) as caught:
        partition(checkpoint, out, **options)
    assert sorted(checkpoint.parent.iterdir()) == before
    return str(caught.value)


def edit_config(checkpoint: Path, **changes: Any) -> None:
    path = checkpoint / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


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


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not a JSON object"),
        ('{"a":' * 100_000, "is not JSON"),
        ('{"hidden_size": 24, "hidden_size": 25}', "is not JSON: an object has the same name twice"),
        ('{"a": ' + "1" * 5000 + "}", "is not JSON"),
        ('{"a": "' + "x" * (1 << 20) + '"}', "is larger than 1 MiB"),
    ],
    ids=["cut", "list", "deep", "same name", "many digits", "large"],
)
def test_bad_config_json(checkpoint: Path, text: str, problem: str) -> None:
    (checkpoint / "config.json").write_text(text)
    assert f"config.json {problem}" in refusal(checkpoint)


def test_no_config_json(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    assert "config.json: No such file" in refusal(checkpoint)


def test_no_weights(checkpoint: Path) -> None:
    (checkpoint / WEIGHTS).unlink()
    assert f"has neither {WEIGHTS} nor {INDEX}" in refusal(checkpoint)


def test_pickled_weights_are_refused(checkpoint: Path) -> None:
    (checkpoint / WEIGHTS).rename(checkpoint / "pytorch_model.bin")
    assert "only pickled weights" in refusal(checkpoint)


@pytest.mark.parametrize("model_type", ["llama", "gpt_oss", None, 7])
def test_other_families_are_refused_by_name(checkpoint: Path, model_type: Any) -> None:
    edit_config(checkpoint, model_type=model_type)
    message = refusal(checkpoint, UnsupportedModel)
    assert message == (
        f"model type {model_type!r} is not supported; these are: mixtral, olmoe, qwen2_moe, qwen3_moe"
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported, only silu"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised (gptq)"),
        ({"quantization_config": {"bits": 4}}, "quantised (unknown)"),
        ({"mlp_only_layers": [0, 1, 2]}, "no layer with experts"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rotary embeddings of type 'dynamic'"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rotary embeddings of type 'longrope'"),
        ({"rope_parameters": {"rope_type": [1] * 1000}}, "rotary embeddings of type [1, 1, 1,"),
    ],
)
def test_variants_that_cannot_be_split(checkpoint: Path, change: dict[str, Any], problem: str) -> None:
    edit_config(checkpoint, **change)
    assert problem in refusal(checkpoint, UnsupportedModel)


@pytest.mark.parametrize(
    "key", ["hidden_size", "moe_intermediate_size", "num_experts_per_tok", "num_hidden_layers"]
)
@pytest.mark.parametrize(
    "value", [..., "24", 0, True, 2.0, 10**12, float("nan"), "x" * 10**5, [[[[[[[[1]]]]]]]] * 1000]
)
def test_sizes_in_config_json(checkpoint: Path, key: str, value: Any) -> None:
    edit_config(checkpoint, **{key: value})
    message = refusal(checkpoint)
    assert f"config.json: {key} is" in message
    assert len(message) < 400


@pytest.mark.parametrize("value", [5, "0", [[0]], [{}], [0.5], [True]])
def test_layers_without_experts_that_are_no_numbers(checkpoint: Path, value: Any) -> None:
    edit_config(checkpoint, mlp_only_layers=value)
    assert "config.json: mlp_only_layers is" in refusal(checkpoint)


@pytest.mark.parametrize("value", ["x" * 10**5, [1] * 10**5, {"a": {"b": [1]}}])
def test_errors_quote_only_the_start_of_a_value(checkpoint: Path, value: Any) -> None:
    for key in ("model_type", "hidden_act"):
        before = (checkpoint / "config.json").read_text()
        edit_config(checkpoint, **{key: value})
        assert len(refusal(checkpoint, UnsupportedModel)) < 400
        (checkpoint / "config.json").write_text(before)


def test_many_layers_without_experts_are_read_quickly(checkpoint: Path) -> None:
    """A search of a list for each layer would take a minute."""
    edit_config(checkpoint, mlp_only_layers=list(range(3, 100_000)), num_hidden_layers=10_000)
    partition(checkpoint, checkpoint.parent / "out")


@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
def test_a_pipe_in_place_of_a_file_makes_nobody_wait(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    os.mkfifo(checkpoint / name)
    assert f"{name} is not a regular file" in refusal(checkpoint)


@pytest.mark.parametrize(
    ("rope", "problem"),
    [
        (5, "rope_parameters is 5, not an object"),
        ({"rope_type": "yarn"}, "rope_parameters.factor is None, not a number above 0"),
        ({"rope_type": "linear", "factor": None}, "rope_parameters.factor is None"),
        ({"rope_type": "linear", "factor": True}, "rope_parameters.factor is True"),
        ({"rope_type": "linear", "factor": -1.0}, "rope_parameters.factor is -1.0"),
        ({"rope_type": "linear", "factor": float("inf")}, "rope_parameters.factor is inf"),
        ({"rope_type": "linear", "factor": "2" * 10**5}, "rope_parameters.factor is '22"),
        ({"rope_type": "llama3", "factor": 2.0}, "rope_parameters.low_freq_factor is None"),
        (
            {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 0},
            "rope_parameters.original_max_position_embeddings is 0, not a number of tokens",
        ),
    ],
    ids=range(9),
)
def test_rotary_embeddings_that_make_no_sense(checkpoint: Path, rope: Any, problem: str) -> None:
    edit_config(checkpoint, rope_parameters=rope)
    message = refusal(checkpoint)
    assert f"config.json: {problem}" in message
    assert len(message) < 400


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


@pytest.mark.parametrize("dtype", ["F8_E4M3", "U8", "I8", "I64", "F64", "Q4_0"])
def test_other_dtypes_are_refused_by_name(checkpoint: Path, dtype: str) -> None:
    edit_header(checkpoint, lambda header: header[UP].update(dtype=dtype))
    message = refusal(checkpoint, UnsupportedModel)
    assert message == (f"{checkpoint / WEIGHTS}: {UP} has dtype {dtype}; only F32, F16 and BF16 can be split")


def test_missing_expert_tensor(checkpoint: Path) -> None:
    edit_tensors(checkpoint, lambda tensors: tensors.pop(UP))
    assert refusal(checkpoint) == f"{checkpoint}: layer 1 has no tensor experts.3.up_proj.weight"


def test_missing_fused_tensor(fused: Path) -> None:
    edit_tensors(fused, lambda tensors: tensors.pop("model.layers.1.mlp.experts.down_proj"))
    assert refusal(fused) == f"{fused}: layer 1 has no tensor experts.down_proj"


def test_expert_of_another_shape(checkpoint: Path) -> None:
    edit_tensors(checkpoint, lambda tensors: tensors.update({UP: torch.zeros(24, 20)}))
    assert refusal(checkpoint) == f"{checkpoint / WEIGHTS}: {UP} is [24, 20], config.json says [20, 24]"


def test_fused_experts_of_another_shape(fused: Path) -> None:
    edit_config(fused, moe_intermediate_size=10)
    assert "is [5, 40, 24], config.json says [5, 20, 24]" in refusal(fused)


@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.experts.5.up_proj.weight", "model.layers.1.mlp.experts.3.up_proj.bias"]
)
def test_expert_tensor_that_is_not_known(checkpoint: Path, name: str) -> None:
    edit_tensors(checkpoint, lambda tensors: tensors.update({name: torch.zeros(20, 24)}))
    assert refusal(checkpoint) == (
        f"{checkpoint / WEIGHTS}: {name} is no expert tensor that config.json allows"
    )


def test_experts_in_a_layer_that_should_have_none(checkpoint: Path) -> None:
    edit_config(checkpoint, mlp_only_layers=[1])
    message = refusal(checkpoint)
    assert "model.layers.1.mlp.experts." in message
    assert "config.json says that this layer has no experts" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(checkpoint: Path, value: float) -> None:
    edit_tensors(checkpoint, lambda tensors: tensors[UP].fill_(value))
    assert f"{checkpoint / WEIGHTS}: expert 3 of layer 1: up" in refusal(checkpoint)


@pytest.mark.parametrize("dtype", ["fp8", "F32", ""])
def test_unknown_target_dtype(checkpoint: Path, dtype: str) -> None:
    message = refusal(checkpoint, ConfigError, dtype=dtype)
    assert message == f"dtype must be one of auto, f32, bf16, int8, not {dtype!r}"


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


def test_too_little_disk_space(checkpoint: Path) -> None:
    """The weights are a sparse file, larger than the free disk space."""
    values = shutil.disk_usage(checkpoint).free // 4 + (1 << 28)
    end = 0

    def add_huge(header: dict[str, Any]) -> None:
        nonlocal end
        start = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        end = start + 4 * values
        header["huge"] = {"dtype": "F32", "shape": [values], "data_offsets": [start, end]}

    edit_header(checkpoint, add_huge)
    path = checkpoint / WEIGHTS
    length = int.from_bytes(np.fromfile(path, np.uint8, 8).tobytes(), "little")
    with path.open("r+b") as file:
        file.truncate(8 + length + end)
    assert "GB free" in refusal(checkpoint)
