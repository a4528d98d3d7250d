"""Families of transformers, split by hooks alone, give the logits of their unsplit models in both ways."""

from pathlib import Path

import pytest

from control_plane.engine.transformers_loader import way_of
from tests.support.models.tiny_families import SplitModel, family_config, prompts, rest, steps

pytestmark = pytest.mark.slow

RAGGED = ("qwen2_moe", "gpt_oss", "gemma4", "deepseek_v3", "glm4_moe", "mixtral", "cohere2_moe")
LOCKSTEP = (
    "granitemoehybrid",
    "qwen3_next",
    "qwen3_5_moe",
    "lfm2_moe",
    "nemotron_h",
    "deepseek_v4",
    "jamba",
)
WAYS = {**dict.fromkeys(RAGGED, "ragged"), **dict.fromkeys(LOCKSTEP, "lockstep")}

BOUND = 1e-4
"""Of the difference of logits in float32; those above 1 count in relation to the largest."""


@pytest.mark.parametrize("family", WAYS)
def test_the_way_of_a_family(family: str) -> None:
    assert way_of(family_config(family)) == WAYS[family]


@pytest.mark.parametrize(
    ("family", "way"), [*WAYS.items(), *((family, "lockstep") for family in RAGGED)], ids=str
)
def test_logits_of_several_sequences_are_the_unsplit_model_s(family: str, way: str, tmp_path: Path) -> None:
    """With a prompt in parts, and while decoding."""
    split = SplitModel.make(family, tmp_path, way)
    memory = split.memory()
    assert max(steps(split, memory, in_parts=split.model.chunks_prompts)) < BOUND


@pytest.mark.parametrize("family", ["qwen2_moe", "qwen3_next"])
def test_rows_of_all_sequences_go_out_in_one_call_a_layer(family: str, tmp_path: Path) -> None:
    split = SplitModel.make(family, tmp_path)
    split.logits([rest(sequence) for sequence in prompts(5, 1, 3)], split.memory())
    assert split.experts.calls == [(layer, 9) for layer in range(4)]


def test_a_family_whose_prompts_cannot_be_continued_says_so(tmp_path: Path) -> None:
    """Jamba's layers forget their state where several tokens follow."""
    assert not SplitModel.make("jamba", tmp_path / "jamba").model.chunks_prompts
    assert SplitModel.make("nemotron_h", tmp_path / "nemotron").model.chunks_prompts


@pytest.mark.parametrize(
    ("family", "overrides"),
    [("qwen2_moe", {}), ("qwen3_next", {"tie_word_embeddings": True}), ("gemma4", {})],
    ids=str,
)
def test_embeddings_stay_in_the_file(family: str, overrides: dict[str, bool], tmp_path: Path) -> None:
    split = SplitModel.make(family, tmp_path, **overrides)
    assert split.model.stored_embedding_bytes == 96 * 32 * 4
    (sequence,) = prompts(9)
    assert split.error([rest(sequence)], split.memory()) < BOUND


def test_the_routers_that_prefetching_uses(tmp_path: Path) -> None:
    split = SplitModel.make("qwen2_moe", tmp_path / "qwen2")
    for layer, module in enumerate(split.reference.model.layers):
        router = split.model.router(layer)
        assert router is not None
        assert router.weight.tolist() == module.mlp.gate.weight.tolist()
        assert router.norm == pytest.approx(module.post_attention_layernorm.weight.numpy(), abs=1e-4)
