"""What a file's metadata says of a model is in its config, or the file is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from bench.support.gguf.conversion import converted
from control_plane.errors import PartitionError
from control_plane.partition.checkpoint.reader import Checkpoint
from tests.support.models.gguf_files import plain, write_gguf
from tests.support.models.gguf_models import tiny_model

pytestmark = pytest.mark.slow

Metadata = dict[str, Any]
Open = Callable[[str, Metadata], Checkpoint]
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """Opens the file of a tiny model of a type. Keys with the value None are left out."""

    def open_file(model_type: str, changes: Metadata) -> Checkpoint:
        architecture, metadata, values = converted(tiny_model(model_type))
        tensors = {name: plain(each) for name, each in values.items()}
        factors = changes.pop("rope_freqs", None)
        if factors is not None:
            tensors["rope_freqs.weight"] = plain(factors)
        stated = {key: value for key, value in (metadata | changes).items() if value is not None}
        return Checkpoint.open(write_gguf(tmp_path / "tiny.gguf", architecture, stated, tensors))

    return open_file


def rope(checkpoint: Checkpoint) -> Any:
    return checkpoint.config["rope_parameters"]


def frequencies(parameters: Metadata, head_dim: int) -> torch.Tensor:
    """Those of transformers."""
    config = AutoConfig.for_model(
        "mixtral", head_dim=head_dim, rope_parameters=dict(parameters), max_position_embeddings=131072
    )
    if parameters["rope_type"] == "default":
        exponents = torch.arange(0, head_dim, 2).float() / head_dim
        return torch.pow(parameters["rope_theta"], -exponents)
    found: torch.Tensor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, torch.device("cpu"))[0]
    return found


def test_factors_of_llama3_become_its_scaling(opened: Open) -> None:
    default = {"rope_type": "default", "rope_theta": LLAMA3["rope_theta"]}
    factors = frequencies(default, 12) / frequencies(LLAMA3, 12)
    stored = {"rope.freq_base": LLAMA3["rope_theta"], "rope_freqs": factors.numpy()}
    assert rope(opened("mixtral", stored)) == LLAMA3


def test_factors_of_one_change_nothing(opened: Open) -> None:
    assert rope(opened("mixtral", {"rope_freqs": np.ones(6, np.float32)}))["rope_type"] == "default"


def test_other_factors_are_refused(opened: Open) -> None:
    factors = np.array([1, 1, 2, 4, 8, 9], np.float32)
    with pytest.raises(PartitionError, match="factors other than those of Llama"):
        opened("mixtral", {"rope_freqs": factors})


@pytest.mark.parametrize(
    "keys",
    [
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        {"rope.scaling.factor": 4.0},
        {"rope.scale_linear": 4.0},
    ],
)
def test_linear_scaling_by_all_its_names(keys: Metadata, opened: Open) -> None:
    found = rope(opened("qwen3_moe", {"rope.freq_base": 1e6, **keys}))
    assert found == {"rope_type": "linear", "rope_theta": 1e6, "factor": 4.0}


def test_yarn(opened: Open) -> None:
    keys = {
        "rope.freq_base": 1e6,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 32768,
        "rope.scaling.yarn_ext_factor": 1.0,
        "rope.scaling.yarn_attn_factor": 1.5,
        "rope.scaling.yarn_beta_fast": 16.0,
    }
    assert rope(opened("qwen3_moe", keys)) == {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
        "attention_factor": 1.5,
        "beta_fast": 16.0,
    }


@pytest.mark.parametrize("model_type", ["qwen3_next", "qwen3_5_moe_text"])
def test_kinds_of_layers(model_type: str, opened: Open) -> None:
    by_layer = opened(model_type, {"attention.recurrent_layers": [True, False, False, True]})
    kinds = {True: "linear_attention", False: "full_attention"}
    assert by_layer.config["layer_types"] == [kinds[each] for each in (True, False, False, True)]
    by_interval = opened(model_type, {"attention.recurrent_layers": None, "full_attention_interval": 2})
    assert by_interval.config["full_attention_interval"] == 2


@pytest.mark.parametrize("model_type", ["deepseek_v2", "deepseek_v3", "glm4_moe_lite"])
def test_files_that_do_not_name_the_routers_function(model_type: str, opened: Open) -> None:
    """Whether there is a bias for choosing experts tells it."""
    assert opened(model_type, {"expert_gating_func": None}).config["model_type"] == model_type


def test_granite_rotates_unless_its_file_says_otherwise(opened: Open) -> None:
    found = opened("granitemoehybrid", {"rope.scaling.finetuned": None})
    assert found.config["position_embedding_type"] == "rope"


def test_heads_that_are_not_a_share_of_the_hidden_state(opened: Open) -> None:
    keys = {"attention.key_length": 16, "attention.value_length": 16}
    assert opened("qwen2_moe", keys).config["head_dim"] == 16


@pytest.mark.parametrize(
    ("model_type", "key", "value"),
    [
        ("qwen3_moe", "expert_gating_func", 2),
        ("qwen3_moe", "expert_weights_norm", False),
        ("qwen3_moe", "expert_weights_scale", 2.5),
        ("qwen2_moe", "expert_weights_norm", True),
        ("qwen2_moe", "logit_scale", 0.5),
        ("deepseek_v2", "expert_weights_norm", True),
        ("deepseek_v3", "attention.temperature_scale", 0.1),
        ("glm4_moe", "expert_gating_func", 1),
        ("glm4_moe", "attention.value_length", 8),
        ("mixtral", "rope.dimension_count", 6),
        ("mixtral", "rope.scaling.attn_factor", 1.2),
        ("mixtral", "rope.scaling.yarn_ext_factor", 0.5),
        ("olmoe", "attn_logit_softcapping", 50.0),
        ("nemotron_h", "expert_used_count", [2, 2, 1, 3]),
        ("gpt_oss", "swiglu_clamp_exp", [7.0] * 4),
    ],
)
def test_what_no_config_can_say_is_refused(model_type: str, key: str, value: Any, opened: Open) -> None:
    with pytest.raises(PartitionError, match=rf"tiny.gguf: the metadata's \S+{key} is .*, not ") as caught:
        opened(model_type, {key: value})
    assert "\n" not in str(caught.value)
