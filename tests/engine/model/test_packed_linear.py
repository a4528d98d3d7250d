"""The packed dense part: which weights are packed, how they load, and how accurate the modules are."""

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from control_plane.cli.main import main
from control_plane.engine.model.transformers_model.layers import PackedGatedFFN, PackedLinear
from control_plane.errors import ConfigError, PartitionError
from control_plane.partition.dense import EMBEDDING
from control_plane.partition.granularity import Granularity
from control_plane.partition.manifest import Manifest
from control_plane.partition.partition_files import PartitionFile
from control_plane.partition.partitioner import partition
from control_plane.partition.recipes import DenseTypes
from functions.kernels.packed_expert import ExpertShape, pack_expert
from functions.kernels.packed_matrix import LinearShape, pack_matrix
from tests.support.models.checkpoints import FAMILIES, save_checkpoint, tiny_model
from tests.support.models.modules import modules_of
from tests.support.running import served

pytestmark = pytest.mark.slow

DENSE = "dense.safetensors"

CASES: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in FAMILIES),
    ("qwen2_moe", {"mlp_only_layers": [1]}),
    ("qwen3_moe", {"attention_bias": True, "mlp_only_layers": [0]}),
    ("olmoe", {"tie_word_embeddings": True}),
]


def packed_partition(
    folder: Path, model: PreTrainedModel, dtype: str = "auto", dense_dtype: str = "int8"
) -> Manifest:
    """Save the model, and partition it with this dense part into `folder`/partition."""
    save_checkpoint(model, folder / "model")
    return partition(
        folder / "model",
        folder / "partition",
        granularity=Granularity(5, 2),
        dtype=dtype,
        dense_dtype=dense_dtype,
    )


def load(folder: Path, manifest: Manifest) -> PreTrainedModel:
    """The model without a dispatcher."""
    return modules_of(folder / "partition", manifest)


def packed_modules(model: nn.Module) -> dict[str, nn.Module]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, PackedLinear | PackedGatedFFN)
    }


@pytest.mark.parametrize(("family", "overrides"), CASES, ids=str)
def test_large_matrices_are_packed_and_the_rest_stays(
    family: str, overrides: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny_model(family, **overrides)
    packed_partition(tmp_path, model)
    published = load_file(tmp_path / "model" / "model.safetensors")
    # Published checkpoints of Mixtral have another name for the module.
    source = {name.replace(".block_sparse_moe.", ".mlp."): tensor for name, tensor in published.items()}
    stored = load_file(tmp_path / "partition" / DENSE)
    kinds = ("_proj.weight", "lm_head.weight")
    dense = {name: tensor for name, tensor in source.items() if ".experts." not in name}
    if model.config.tie_word_embeddings:
        dense["lm_head.weight"] = dense[EMBEDDING]
    large = {name for name in dense if name.endswith(kinds)}
    assert {name for name in stored if not name.endswith(".packed")} == dense.keys() - large
    for name in dense.keys() - large:
        assert torch.equal(stored[name], dense[name]), name
    for name in large:
        module = name.removesuffix(".weight")
        if f"{module}.packed" not in stored:
            module = module.rpartition(".")[0]
        packed = stored[f"{module}.packed"].numpy()
        np.testing.assert_array_equal(packed, packed_as_a_whole(module, dense))


def packed_as_a_whole(module: str, tensors: dict[str, torch.Tensor]) -> np.ndarray:
    if f"{module}.weight" in tensors:
        weight = tensors[f"{module}.weight"].numpy()
        outputs, inputs = weight.shape
        return pack_matrix(LinearShape(outputs, inputs, "int8"), weight)
    gate, up, down = (tensors[f"{module}.{part}_proj.weight"].numpy() for part in ("gate", "up", "down"))
    hidden_size, intermediate_size = down.shape
    return pack_expert(ExpertShape(hidden_size, intermediate_size, "int8", "int8"), gate, up, down)


def test_matrices_larger_than_what_is_packed_at_a_time(tmp_path: Path) -> None:
    model = tiny_model("qwen2_moe", vocab_size=1100, shared_expert_intermediate_size=700)
    packed_partition(tmp_path, model)
    dense = load_file(tmp_path / "model" / "model.safetensors")
    stored = load_file(tmp_path / "partition" / DENSE)
    for module in ("lm_head", "model.layers.0.mlp.shared_expert"):
        packed = stored[f"{module}.packed"].numpy()
        np.testing.assert_array_equal(packed, packed_as_a_whole(module, dense))


@pytest.mark.parametrize(
    ("dtype", "dense_dtype", "bound"),
    [
        ("f32", "auto", 1e-6),
        ("bf16", "auto", 0.01),
        ("f32", "int8", 0.03),
        ("bf16", "int8", 0.03),
        ("bf16", "int4", 0.15),
    ],
)
@pytest.mark.parametrize(("family", "overrides"), CASES, ids=str)
def test_modules_are_close_to_the_models_own(
    family: str, overrides: dict[str, Any], dtype: str, dense_dtype: str, bound: float, tmp_path: Path
) -> None:
    model = tiny_model(family, initializer_range=0.2, **overrides)
    loaded = load(tmp_path, packed_partition(tmp_path, model, dtype, dense_dtype))
    modules = packed_modules(loaded)
    gated = [name for name, module in modules.items() if isinstance(module, PackedGatedFFN)]
    assert len(modules) == 3 * 4 + 1 + len(gated)
    for name, module in modules.items():
        own: Any = model.get_submodule(name)
        width = own.down_proj.out_features if name in gated else own.in_features
        x = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            found, expected = module(x.to(loaded.dtype)), own(x)
        assert found.dtype == loaded.dtype
        assert found.shape == expected.shape
        error = (found.float() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
        assert error < bound, name


def test_shared_experts_and_layers_without_experts_are_one_module_each(tmp_path: Path) -> None:
    model = tiny_model("qwen2_moe", mlp_only_layers=[1])
    modules = packed_modules(load(tmp_path, packed_partition(tmp_path, model)))
    gated = {name for name, module in modules.items() if isinstance(module, PackedGatedFFN)}
    assert gated == {f"model.layers.{i}.mlp{'' if i == 1 else '.shared_expert'}" for i in range(3)}


def test_packed_weights_are_mapped_from_the_file(tmp_path: Path) -> None:
    loaded = load(tmp_path, packed_partition(tmp_path, tiny_model("qwen2_moe"), "bf16"))
    lines = Path("/proc/self/maps").read_text().splitlines()
    path = str(tmp_path / "partition" / DENSE)
    ranges = [line.split()[0].split("-") for line in lines if line.endswith(path)]
    assert packed_modules(loaded)
    for name, parameter in loaded.named_parameters():
        address = parameter.data_ptr()
        assert any(int(start, 16) <= address < int(end, 16) for start, end in ranges), name


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_stay_near_the_f32_models(family: str, dtype: str, tmp_path: Path) -> None:
    """The root mean square error of the logits, as a share of their own spread, stays under 3%: attention
    decides more of them than experts do, of which int8 costs 1%."""
    # All experts are used: an expert in the place of another would hide how near the numbers are.
    model = tiny_model(family, hidden_size=64, num_experts_per_tok=5, initializer_range=0.1)
    packed_partition(tmp_path, model, dtype)
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, 64, (1, length), generator=generator) for length in (1, 7, 30)]

    async def logits() -> list[torch.Tensor]:
        async with served(tmp_path / "partition") as serving:
            return [await asyncio.to_thread(serving.prompt_logits, prompt) for prompt in prompts]

    found = torch.stack(asyncio.run(logits())).float()
    expected = torch.stack([model(prompt).logits[0, -1].detach() for prompt in prompts])
    error = (found - expected).square().mean().sqrt() / expected.std()
    assert error < 0.03


def test_manifest_has_the_dtype_and_the_fingerprint_depends_on_it(tmp_path: Path) -> None:
    manifest = packed_partition(tmp_path, tiny_model("qwen2_moe"))
    plain = partition(
        tmp_path / "model", tmp_path / "plain", granularity=Granularity(5, 2), name=manifest.name
    )
    assert (manifest.dtype, manifest.gate_up_dtype, manifest.down_dtype) == ("f32", "f32", "f32")
    assert manifest.dense_dtypes == DenseTypes("int8", "int8", "int8", "int8")
    assert plain.dense_dtypes == DenseTypes("f32", "f32", "f32", "f32")
    assert plain.blocks == manifest.blocks
    assert plain.fingerprint != manifest.fingerprint
    assert Manifest.load(tmp_path / "partition") == manifest
    document = json.loads((tmp_path / "partition" / "manifest.json").read_text())
    assert document["dense_dtypes"] == dict.fromkeys(("attention", "gate_up", "down", "head"), "int8")


def test_the_command_takes_the_dtype(tmp_path: Path) -> None:
    save_checkpoint(tiny_model("olmoe"), tmp_path / "model")
    arguments = ["partition", str(tmp_path / "model"), str(tmp_path / "out"), "--dense-dtype", "int4"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert Manifest.load(tmp_path / "out").dense_dtypes.attention == "int4_min"


def test_a_tied_head_has_the_embeddings_weights(tmp_path: Path) -> None:
    """Some checkpoints also have the weights under the head's name, which transformers does not read then."""
    folder = save_checkpoint(tiny_model("olmoe", tie_word_embeddings=True), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    with_tensors({**tensors, "lm_head.weight": torch.zeros(64, 24)}, folder)
    partition(folder, tmp_path / "out", dense_dtype="int4")
    stored = load_file(tmp_path / "out" / DENSE)
    assert torch.equal(stored[EMBEDDING], tensors[EMBEDDING])
    head = packed_as_a_whole("lm_head", {"lm_head.weight": tensors[EMBEDDING]})
    np.testing.assert_array_equal(stored["lm_head.packed"].numpy(), head)
    del tensors[EMBEDDING]
    with_tensors(tensors, folder)
    with pytest.raises(PartitionError, match=f"lacks {EMBEDDING}"):
        partition(folder, tmp_path / "none")


def test_another_dtype_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tiny_model("olmoe"), tmp_path / "model")
    with pytest.raises(ConfigError, match="dense dtype must be one of auto, int8, int4, not 'bf16'"):
        partition(tmp_path / "model", tmp_path / "out", dense_dtype="bf16")


def with_tensors(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("name", "tensor", "problem"),
    [
        ("lm_head.weight", torch.full((64, 24), torch.nan), "lm_head: weights are not finite"),
        ("lm_head.weight", torch.zeros(24), r"lm_head.weight has the shape \[64, 24\] by config.json"),
        (
            "model.layers.0.mlp.shared_expert.up_proj.weight",
            None,
            "the checkpoint lacks model.layers.0.mlp.shared_expert.up_proj.weight",
        ),
        (
            "model.layers.0.mlp.shared_expert.up_proj.weight",
            torch.zeros(24, 28),
            r"up_proj.weight has the shape \[28, 24\] by config.json, the checkpoint has .*\[24, 28\]",
        ),
    ],
)
def test_weights_that_cannot_be_packed_are_named(
    name: str, tensor: torch.Tensor | None, problem: str, tmp_path: Path
) -> None:
    folder = save_checkpoint(tiny_model("qwen2_moe"), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    with_tensors(tensors if tensor is None else {**tensors, name: tensor}, folder)
    with pytest.raises(PartitionError, match=problem):
        partition(folder, tmp_path / "out", dense_dtype="int8")
    assert not (tmp_path / "out").exists()


def test_missing_packed_weights_are_named(tmp_path: Path) -> None:
    manifest = packed_partition(tmp_path, tiny_model("qwen2_moe"))
    path = tmp_path / "partition" / DENSE
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    del tensors["lm_head.packed"]
    save_file(tensors, path, metadata=metadata)
    data = path.read_bytes()
    dense = PartitionFile(DENSE, len(data), hashlib.sha256(data).hexdigest())
    with pytest.raises(PartitionError, match=r"lacks lm_head\.weight"):
        load(tmp_path, msgspec.structs.replace(manifest, dense=dense))
