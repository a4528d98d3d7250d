"""Families of transformers, split by hooks alone, give the logits of their unsplit models in both ways."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from control_plane.engine.kernels import load_dense_kernel
from control_plane.engine.model.transformers_model.experts import experts_modules
from control_plane.engine.transformers_loader import load_transformers
from control_plane.errors import PartitionError, UnsupportedModel
from control_plane.partition.model.architecture import Way
from tests.support.models.family_configs import HYBRID, LOCKSTEP, VOCABULARY
from tests.support.models.tiny_families import SplitModel, family_model, prompts, rest, save_dense, steps

pytestmark = pytest.mark.slow

RAGGED = ("qwen2_moe", "gpt_oss", "gemma4", "deepseek_v3", "glm4_moe", "mixtral", "cohere2_moe", *HYBRID)
WAYS: dict[str, Way] = {**dict.fromkeys(RAGGED, "ragged"), **dict.fromkeys(LOCKSTEP, "lockstep")}

BOUND = 1e-4
"""Of the difference of logits in float32; those above 1 count in relation to the largest."""


@pytest.mark.parametrize(
    ("family", "way"), [*WAYS.items(), *((family, "lockstep") for family in RAGGED)], ids=str
)
def test_logits_of_several_sequences_are_the_unsplit_model_s(family: str, way: Way, tmp_path: Path) -> None:
    """With a prompt in parts, and while decoding."""
    split = SplitModel.make(family, tmp_path, way)
    memory = split.memory()
    assert max(steps(split, memory, in_parts=split.model.chunks_prompts)) < BOUND


@pytest.mark.parametrize(
    "family", ["qwen2_moe", "gpt_oss", "deepseek_v3", "gemma4", "qwen3_next", "nemotron_h", "lfm2_moe"]
)
def test_bfloat16_stays_near_float32(family: str, tmp_path: Path) -> None:
    """The root mean square error of a row's logits, as a share of their spread. Most rows choose the same
    experts as in float32."""
    split = SplitModel.make(family, tmp_path, dtype="bf16")
    batch = [rest(sequence) for sequence in prompts(21, 1, 9)]
    logits = torch.cat(split.logits(batch, split.memory()))
    expected = torch.cat([split.expected(chunk) for chunk in batch])
    errors = (logits - expected).square().mean(dim=1).sqrt() / expected.std()
    assert errors.median() < 0.1


def test_tensors_have_the_types_of_the_file(tmp_path: Path) -> None:
    """In the file of a bfloat16 model, some that the family wants so are float32."""
    model = SplitModel.make("deepseek_v3", tmp_path, dtype="bf16").model.model
    types = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    assert types == {name: tensor.dtype for name, tensor in load_file(tmp_path / "dense.safetensors").items()}
    assert {types["model.layers.1.mlp.gate.e_score_correction_bias"], types["lm_head.weight"]} == {
        torch.float32,
        torch.bfloat16,
    }


@pytest.mark.parametrize("family", WAYS)
def test_nothing_of_experts_is_allocated_and_nothing_else_is_left_out(family: str, tmp_path: Path) -> None:
    split = SplitModel.make(family, tmp_path)
    for name, module in experts_modules(split.model.model).items():
        assert not list(module.parameters(recurse=False)), name
    tensors = [*split.model.model.parameters(), *split.model.model.buffers()]
    assert not any(tensor.is_meta for tensor in tensors)


@pytest.mark.parametrize("family", ["gemma4", "qwen3_next"])
def test_missing_tensors_are_named(family: str, tmp_path: Path) -> None:
    dense = save_dense(family_model(family), tmp_path, "f32")
    tensors = load_file(dense)
    missing = sorted(name for name in tensors if "layers.1." in name and "norm" in name)
    save_file({name: tensor for name, tensor in tensors.items() if name not in missing}, dense)
    with pytest.raises(PartitionError) as caught:
        load_transformers(tmp_path, dense, "f32", range(4), 1, load_dense_kernel(), "ragged")
    assert str(caught.value) == f"{dense} lacks {', '.join(missing)}"


def test_a_family_without_the_interface_for_experts_is_refused(tmp_path: Path) -> None:
    dense = save_dense(family_model("jetmoe"), tmp_path, "f32")
    with pytest.raises(UnsupportedModel, match="jetmoe has 0 modules of transformers' experts interface"):
        load_transformers(tmp_path, dense, "f32", range(4), 1, load_dense_kernel(), "ragged")


@pytest.mark.parametrize("family", ["qwen2_moe", "qwen3_next"])
def test_rows_of_all_sequences_go_out_in_one_call_a_layer(family: str, tmp_path: Path) -> None:
    split = SplitModel.make(family, tmp_path)
    split.logits([rest(sequence) for sequence in prompts(5, 1, 3)], split.memory())
    assert split.experts.calls == [(layer, 9) for layer in range(4)]


@pytest.mark.parametrize(
    ("family", "overrides"),
    [("qwen2_moe", {}), ("qwen3_next", {"tie_word_embeddings": True}), ("gemma4", {})],
    ids=str,
)
def test_embeddings_stay_in_the_file(family: str, overrides: dict[str, Any], tmp_path: Path) -> None:
    split = SplitModel.make(family, tmp_path, **overrides)
    assert split.model.stored_embedding_bytes == VOCABULARY * 32 * 4
    (sequence,) = prompts(9)
    assert split.error([rest(sequence)], split.memory()) < BOUND


def test_the_routers_that_prefetching_uses(tmp_path: Path) -> None:
    split = SplitModel.make("qwen2_moe", tmp_path / "qwen2")
    for layer, module in enumerate(split.reference.model.layers):
        router = split.model.router(layer)
        assert router is not None
        assert router.weight.tolist() == module.mlp.gate.weight.tolist()
        assert router.norm == pytest.approx(module.post_attention_layernorm.weight.numpy(), abs=1e-4)
