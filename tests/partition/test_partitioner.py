"""A partition has the checkpoint's weights: read back by other means, they equal the source."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from control_plane.partition.granularity import Granularity
from control_plane.partition.manifest import Manifest
from control_plane.partition.partition_files import Block
from control_plane.partition.partitioner import partition
from functions.kernels.activation import Activation
from functions.kernels.packed_expert import ExpertShape, unpack_expert
from tests.support.models.checkpoints import FAMILIES, save_checkpoint, save_fused_checkpoint, tiny_model
from tests.support.models.dense_part import dense_weights

GRANULARITIES = [Granularity(1, 1), Granularity(2, 1), Granularity(5, 3), Granularity(3, 2)]
HIDDEN, WIDTH, EXPERTS, LAYERS = 24, 20, 5, 3


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def checkpoint(model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(model, tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    return save_checkpoint(tiny_model("qwen2_moe"), tmp_path / "qwen")


def source_experts(model: PreTrainedModel) -> dict[tuple[int, int], tuple[torch.Tensor, ...]]:
    """gate, up and down of each (layer, expert), from the parameters of the transformers model."""
    experts = {}
    layers: Any = model.model.layers
    for layer, module in enumerate(layers):
        if hasattr(module.mlp, "experts"):
            fused, down = module.mlp.experts.gate_up_proj.detach(), module.mlp.experts.down_proj.detach()
            for expert in range(len(fused)):
                experts[layer, expert] = (*fused[expert].chunk(2), down[expert])
    return experts


def stored_experts(folder: Path, manifest: Manifest) -> dict[tuple[int, int], tuple[torch.Tensor, ...]]:
    """gate, up and down of each (layer, expert), unpacked from the bytes at the manifest's offsets."""
    experts = {}
    for block in manifest.blocks:
        data = np.fromfile(folder / block.file, np.uint8)
        for layer, indices in block.experts.items():
            for expert in indices:
                start = block.expert_offset(layer, expert)
                packed = data[start : start + manifest.expert_nbytes]
                experts[layer, expert] = tuple(
                    map(torch.from_numpy, unpack_expert(manifest.expert_shape, packed))
                )
    return experts


def assert_experts_equal(folder: Path, manifest: Manifest, model: PreTrainedModel) -> None:
    stored, source = stored_experts(folder, manifest), source_experts(model)
    assert stored.keys() == source.keys()
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[manifest.gate_up_dtype]
    for key, matrices in source.items():
        for found, matrix in zip(stored[key], matrices, strict=True):
            assert torch.equal(found, matrix.to(dtype).float()), key


def dense_tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(checkpoint / "model.safetensors")
    # Published checkpoints of Mixtral have another name for the module.
    return {
        name.replace(".block_sparse_moe.", ".mlp."): tensor
        for name, tensor in tensors.items()
        if ".experts." not in name
    }


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_every_expert_is_exact(
    model: PreTrainedModel, checkpoint: Path, tmp_path: Path, granularity: Granularity, dtype: str
) -> None:
    manifest = partition(checkpoint, tmp_path / "out", granularity=granularity, dtype=dtype)
    assert (manifest.dtype, manifest.gate_up_dtype, manifest.down_dtype) == (dtype, dtype, dtype)
    assert len(manifest.blocks) == granularity.num_functions(EXPERTS, LAYERS)
    assert_experts_equal(tmp_path / "out", manifest, model)
    Manifest.load(tmp_path / "out").verify(tmp_path / "out")


def test_int8_experts_are_within_half_a_step(
    model: PreTrainedModel, checkpoint: Path, tmp_path: Path
) -> None:
    manifest = partition(checkpoint, tmp_path / "out", granularity=Granularity(3, 2), dtype="int8")
    assert (manifest.dtype, manifest.gate_up_dtype, manifest.down_dtype) == ("f32", "int8", "int8")
    stored = stored_experts(tmp_path / "out", manifest)
    for key, matrices in source_experts(model).items():
        for found, matrix in zip(stored[key], matrices, strict=True):
            step = matrix.abs().amax(dim=1, keepdim=True) / 127  # of the only group of a row
            assert ((found - matrix).abs() <= step * 0.57).all(), key


@pytest.mark.parametrize("dtype", ["auto", "f32", "bf16", "int8"])
def test_dense_part_is_all_but_the_experts(checkpoint: Path, tmp_path: Path, dtype: str) -> None:
    manifest = partition(checkpoint, tmp_path / "out", dtype=dtype)
    stored = dense_weights(tmp_path / "out" / "dense.safetensors", manifest.dtype)
    source = dense_tensors(checkpoint)
    assert stored.keys() == source.keys()
    for name, tensor in source.items():
        wanted = tensor.bfloat16() if dtype == "bf16" else tensor
        assert torch.equal(stored[name].float(), wanted.float()), name
    assert any(".mlp.gate." in name for name in stored)


@pytest.mark.parametrize(
    ("source", "stored"),
    [(torch.float32, "f32"), (torch.bfloat16, "bf16"), (torch.float16, "f32")],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["auto", "int8"])
def test_auto_keeps_the_dtype_of_the_source(
    tmp_path: Path, source: torch.dtype, stored: str, dtype: str
) -> None:
    model = tiny_model("olmoe", dtype=source)
    checkpoint = save_checkpoint(model, tmp_path / "source")
    manifest = partition(checkpoint, tmp_path / "out", dtype=dtype)
    assert manifest.dtype == stored
    for name, tensor in dense_weights(tmp_path / "out" / "dense.safetensors", stored).items():
        assert torch.equal(tensor.float(), dense_tensors(checkpoint)[name].float()), name
    if dtype == "auto":
        assert_experts_equal(tmp_path / "out", manifest, model)


def test_fused_checkpoint_gives_the_same_experts(
    model: PreTrainedModel, checkpoint: Path, tmp_path: Path
) -> None:
    fused = save_fused_checkpoint(model, tmp_path / "fused")
    granularity = Granularity(2, 2)
    a = partition(checkpoint, tmp_path / "a", granularity=granularity, name="m")
    b = partition(fused, tmp_path / "b", granularity=granularity, name="m")
    assert [block.sha256 for block in a.blocks] == [block.sha256 for block in b.blocks]


@pytest.mark.parametrize("has_index", [True, False])
def test_shards_do_not_change_the_partition(
    model: PreTrainedModel, checkpoint: Path, tmp_path: Path, has_index: bool
) -> None:
    sharded = save_checkpoint(model, tmp_path / "sharded", max_shard_size="40KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 2
    if not has_index:
        (sharded / "model.safetensors.index.json").unlink()
    a = partition(checkpoint, tmp_path / "a", name="m")
    b = partition(sharded, tmp_path / "b", name="m")
    assert a.fingerprint == b.fingerprint


def test_block_is_a_safetensors_file_of_whole_pages(qwen: Path, tmp_path: Path) -> None:
    manifest = partition(qwen, tmp_path / "out", granularity=Granularity(3, 2))
    for block in manifest.blocks:
        path = tmp_path / "out" / block.file
        tensors = load_numpy(path)
        data = path.read_bytes()
        assert block.offset % 4096 == 0
        assert manifest.expert_nbytes % 4096 == 0
        assert set(tensors) == {f"layers.{layer}.experts.{expert}" for layer, expert in keys(block)}
        for position, (layer, expert) in enumerate(keys(block)):
            start = block.offset + position * manifest.expert_nbytes
            assert block.expert_offset(layer, expert) == start
            tensor = tensors[f"layers.{layer}.experts.{expert}"]
            assert tensor.tobytes() == data[start : start + manifest.expert_nbytes]


def keys(block: Block) -> list[tuple[int, int]]:
    return [(layer, expert) for layer, experts in block.experts.items() for expert in experts]


def test_padding_is_zero(qwen: Path, tmp_path: Path) -> None:
    manifest = partition(qwen, tmp_path / "out", granularity=Granularity(1, 1))
    nbytes = ExpertShape(HIDDEN, WIDTH, "f32", "f32").nbytes
    assert nbytes < manifest.expert_nbytes
    for block in manifest.blocks:
        assert not any((tmp_path / "out" / block.file).read_bytes()[block.offset + nbytes :])


@pytest.mark.parametrize(
    ("options", "moe_layers"),
    [
        ({"mlp_only_layers": [1]}, (0, 2)),
        ({"decoder_sparse_step": 2}, (1,)),
        ({"decoder_sparse_step": 1, "mlp_only_layers": [0, 2]}, (1,)),
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["qwen2_moe", "qwen3_moe"])
def test_layers_without_experts_stay_dense(
    tmp_path: Path, family: str, options: dict[str, Any], moe_layers: tuple[int, ...]
) -> None:
    model = tiny_model(family, **options)
    checkpoint = save_checkpoint(model, tmp_path / "source")
    manifest = partition(checkpoint, tmp_path / "out", granularity=Granularity(5, 1))
    assert manifest.moe_layers == moe_layers
    assert_experts_equal(tmp_path / "out", manifest, model)
    stored = dense_weights(tmp_path / "out" / "dense.safetensors", manifest.dtype)
    assert stored.keys() == dense_tensors(checkpoint).keys()


def test_same_input_gives_the_same_fingerprint_and_any_other_another(qwen: Path, tmp_path: Path) -> None:
    first = partition(qwen, tmp_path / "a")
    assert partition(qwen, tmp_path / "b").fingerprint == first.fingerprint
    tensors = load_file(qwen / "model.safetensors")
    tensors["model.layers.1.mlp.experts.3.up_proj.weight"][4, 5] += 1
    save_file(tensors, qwen / "model.safetensors", metadata={"format": "pt"})
    assert partition(qwen, tmp_path / "c").fingerprint != first.fingerprint


def test_progress_goes_up_to_all_bytes_written(qwen: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    manifest = partition(qwen, tmp_path / "out", progress=lambda done, total: calls.append((done, total)))
    done = [done for done, _ in calls]
    assert done == sorted(done)
    assert calls[-1][0] == calls[-1][1]
    assert len({total for _, total in calls}) == 1
    experts = EXPERTS * LAYERS * manifest.expert_nbytes
    dense = sum(tensor.nbytes for tensor in load_file(tmp_path / "out" / "dense.safetensors").values())
    assert calls[-1][1] == experts + dense


def test_manifest_describes_the_model(qwen: Path, tmp_path: Path) -> None:
    manifest = partition(qwen, tmp_path / "out", granularity=Granularity(2, 3), name="My Model (v1.5)!")
    document = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert document["name"] == "my-model-v1-5"
    assert document["model_type"] == "qwen2_moe"
    assert [document[key] for key in ("hidden_size", "intermediate_size")] == [HIDDEN, WIDTH]
    assert document["activation"] == vars(Activation())
    assert document["has_bias"] is False
    assert [document[key] for key in ("num_experts", "num_experts_per_tok")] == [EXPERTS, 2]
    assert [document[key] for key in ("experts_per_function", "layers_per_function")] == [2, 3]
    assert [block["function"] for block in document["blocks"]] == [
        "my-model-v1-5-l00-02-e00-01",
        "my-model-v1-5-l00-02-e02-03",
        "my-model-v1-5-l00-02-e04",
    ]
    assert manifest.image == f"faasmoe-expert:{version('faasmoe')}-{document['fingerprint'][:12]}"
