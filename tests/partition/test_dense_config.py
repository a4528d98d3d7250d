"""A model's numbers are those that transformers reads from the same config.json."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from control_plane.errors import PartitionError
from control_plane.partition.model.dense_config import DenseConfig
from tests.support.models.checkpoints import FAMILIES, tiny_config
from tests.support.paths import DEMO_MODEL

SAME = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "max_position_embeddings",
    "num_experts_per_tok",
)
OPTIONAL = (
    "num_key_value_heads",
    "head_dim",
    "qkv_bias",
    "attention_bias",
    "norm_topk_prob",
    "shared_expert_intermediate_size",
    "clip_qkv",
    "sliding_window",
    "use_sliding_window",
    "layer_types",
    "max_window_layers",
    "rope_parameters",
)


def check(folder: Path) -> None:
    ours, theirs = DenseConfig.load(folder), AutoConfig.from_pretrained(folder)
    for name in SAME:
        assert getattr(ours, name) == getattr(theirs, name), name
    size = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert ours.head_dim == size
    assert ours.norm_topk_prob == getattr(theirs, "norm_topk_prob", True)
    assert ours.clip_qkv == getattr(theirs, "clip_qkv", None)
    shared = getattr(theirs, "shared_expert_intermediate_size", None)
    assert ours.shared_expert_intermediate_size == shared
    biased = "qkvo" if getattr(theirs, "attention_bias", False) else ""
    assert ours.biased == ("qkv" if getattr(theirs, "qkv_bias", False) else biased)
    rope = dict(ours.rope_parameters)
    expected = {"original_max_position_embeddings": rope.get("original_max_position_embeddings")}
    assert {**expected, **rope} == {**expected, **theirs.rope_parameters}
    types = getattr(theirs, "layer_types", None)
    window = getattr(theirs, "sliding_window", None) or None
    assert ours.windows == tuple(
        window if types is None or types[layer] == "sliding_attention" else None
        for layer in range(theirs.num_hidden_layers)
    )


def written(folder: Path, family: str, **changes: Any) -> Path:
    """A tiny model's config.json with changes; `...` removes a key."""
    config = {**json.loads(tiny_config(family).to_json_string(use_diff=False)), **changes}
    kept = {key: value for key, value in config.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_is_read_as_transformers_reads_it(tmp_path: Path, family: str) -> None:
    check(written(tmp_path, family))


def test_the_bundled_model_s_config() -> None:
    check(DEMO_MODEL)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("key", OPTIONAL)
def test_a_missing_key_has_transformers_default(tmp_path: Path, family: str, key: str) -> None:
    check(written(tmp_path, family, **{key: ...}))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": ..., "rope_theta": 5e5},
        {"rope_parameters": ..., "rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 7.0}},
        {"sliding_window": 7},
        {"sliding_window": 7, "use_sliding_window": True, "layer_types": ...},
        {"sliding_window": 7, "use_sliding_window": True, "layer_types": ..., "max_window_layers": 1},
        {"head_dim": 6},
    ],
    ids=str,
)
def test_changed_configs(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    if family == "olmoe" and "sliding_window" in changes:
        pytest.skip("OLMoE's modules ask for a window that its config does not know")
    check(written(tmp_path, family, **changes))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"vocab_size": ...}, "vocab_size: is missing"),
        ({"vocab_size": "many"}, "vocab_size: must be a whole number"),
        ({"rms_norm_eps": -1}, "rms_norm_eps"),
        ({"num_attention_heads": 1 << 40}, "num_attention_heads"),
        ({"num_attention_heads": 1000, "head_dim": None}, "num_attention_heads is 1000, hidden_size 24"),
        ({"layer_types": ["full_attention"]}, "layer_types has 1 layers of 3"),
        ({"rope_theta": "x"}, "rope_theta"),
        ({"rope_parameters": {"rope_theta": []}}, "rope_theta"),
    ],
    ids=str,
)
def test_a_wrong_value_is_one_line(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(PartitionError, match=problem) as refused:
        DenseConfig.load(written(tmp_path, "qwen2_moe", **changes))
    assert "\n" not in str(refused.value)
