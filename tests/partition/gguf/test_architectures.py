"""Tiny models of each architecture, written as llama.cpp's conversion does, are read back as they were."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from control_plane.partition.checkpoint.gguf.model import ARCHITECTURES
from control_plane.partition.checkpoint.reader import Checkpoint
from tests.support.models.gguf_conversion import MODEL_TYPES, converted
from tests.support.models.gguf_files import plain, write_gguf

pytestmark = pytest.mark.slow

_COMMON: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
_ROUTED: dict[str, Any] = {"n_routed_experts": 4, "n_shared_experts": 1, "moe_intermediate_size": 24}
_LATENT: dict[str, Any] = {
    **_ROUTED,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_DELTA: dict[str, Any] = {
    "num_experts": 4,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 28,
    "head_dim": 16,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 6,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
}
_YARN = {"rope_type": "yarn", "rope_theta": 5e4, "factor": 4.0, "original_max_position_embeddings": 32}
_GRANITE: dict[str, Any] = {
    "num_local_experts": 4,
    "attention_multiplier": 0.25,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
    "logits_scaling": 2.0,
}
_BY_TYPE: dict[str, dict[str, Any]] = {
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 28},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 24, "head_dim": 12, "norm_topk_prob": True},
    "mixtral": {"num_local_experts": 4, "head_dim": 12},
    "olmoe": {"num_experts": 4},
    "qwen3_next": _DELTA,
    "qwen3_5_moe_text": _DELTA,
    "deepseek_v2": {
        **_LATENT,
        "q_lora_rank": None,
        "rope_parameters": {**_YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
    },
    "deepseek_v3": {**_LATENT, "q_lora_rank": 20, "n_group": 2, "routed_scaling_factor": 2.5},
    "glm4_moe_lite": {**_LATENT, "q_lora_rank": 20},
    "glm4_moe": {**_ROUTED, "head_dim": 16, "use_qk_norm": True, "attention_bias": True},
    "gpt_oss": {
        "num_local_experts": 4,
        "head_dim": 16,
        "rope_parameters": {**_YARN, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False},
    },
    "granitemoe": _GRANITE,
    "granitemoeshared": {**_GRANITE, "shared_intermediate_size": 20},
    "granitemoehybrid": {
        **_GRANITE,
        "shared_intermediate_size": 20,
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_d_state": 6,
        "mamba_n_groups": 2,
        "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
        "position_embedding_type": "nope",
    },
    "nemotron_h": {
        **_ROUTED,
        "moe_shared_expert_intermediate_size": 28,
        "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "ssm_state_size": 6,
        "n_groups": 2,
        "head_dim": 12,
    },
    "lfm2_moe": {
        "num_experts": 4,
        "moe_intermediate_size": 24,
        "num_dense_layers": 1,
        "layer_types": ["conv", "full_attention", "conv", "conv"],
    },
    "ernie4_5_moe": {
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 24,
        "moe_layer_start_index": 1,
        "moe_num_shared_experts": 2,
    },
}
_NOT_IN_FILES = frozenset({"dtype", "torch_dtype", "architectures", "transformers_version", "_name_or_path"})
"""Keys that say nothing of what a model computes."""
_UNUSED = {"qwen3_5_moe_text": {"intermediate_size"}, "nemotron_h": {"intermediate_size"}}
"""Keys that count for none of the layers of a model."""


def tiny_model(model_type: str) -> PreTrainedModel:
    """A random model, whose norms and biases are random, too."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**_COMMON, **_BY_TYPE[model_type]})
    factory: Any = AutoModelForCausalLM
    model: PreTrainedModel = factory.from_config(config).eval()
    with torch.no_grad():
        for values in [
            *model.parameters(),
            *(buffer for buffer in model.buffers() if buffer.is_floating_point()),
        ]:
            values.copy_(torch.rand(values.shape) * 0.5 + 0.1)
    return model


@pytest.fixture(scope="module", params=MODEL_TYPES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(request.param)


@pytest.fixture
def checkpoint(model: PreTrainedModel, tmp_path: Path) -> Checkpoint:
    architecture, metadata, tensors = converted(model)
    file = write_gguf(
        tmp_path / "tiny.gguf", architecture, metadata, {name: plain(each) for name, each in tensors.items()}
    )
    return Checkpoint.open(file)


def test_all_architectures_are_tested() -> None:
    assert {converted(tiny_model(model_type))[0] for model_type in MODEL_TYPES} == set(ARCHITECTURES)


def test_tensors_are_those_of_the_model(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    state = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight")
    assert set(checkpoint.tensors) == set(state)
    for name, wanted in state.items():
        tensor = checkpoint.tensors[name]
        assert tensor.shape == wanted.shape, name
        found = tensor.read(0, tensor.size).reshape(tensor.shape)
        np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=2e-7, err_msg=name)


def test_any_piece_of_a_tensor_can_be_read(checkpoint: Checkpoint) -> None:
    for tensor in checkpoint.tensors.values():
        whole = tensor.read(0, tensor.size)
        for start, stop in ((0, 1), (tensor.size // 3, tensor.size // 3 * 2), (tensor.size - 1, tensor.size)):
            assert np.array_equal(tensor.read(start, stop - start), whole[start:stop]), tensor.name


def test_the_config_is_that_of_the_model(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    config = dict(checkpoint.config)
    read = AutoConfig.for_model(config.pop("model_type"), **config).to_dict()
    wanted, unused = model.config.to_dict(), _UNUSED.get(model.config.model_type, set())
    different = {
        key: (read.get(key), wanted[key])
        for key in wanted
        if key not in _NOT_IN_FILES | unused and read.get(key) != wanted[key]
    }
    assert different == {}


def test_the_model_answers_alike(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    config = dict(checkpoint.config)
    factory: Any = AutoModelForCausalLM
    read = factory.from_config(AutoConfig.for_model(config.pop("model_type"), **config)).float().eval()
    state = {
        name: torch.from_numpy(np.array(tensor.read(0, tensor.size)).reshape(tensor.shape))
        for name, tensor in checkpoint.tensors.items()
    }
    missing, unexpected = read.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    read.tie_weights()
    tokens = torch.tensor([[3, 14, 15, 9, 26, 5, 35, 8]])
    with torch.no_grad():
        torch.testing.assert_close(read(tokens).logits, model(tokens).logits, rtol=1e-4, atol=1e-4)
