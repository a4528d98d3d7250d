"""What is said of the memory of sequences is what transformers' own cache keeps."""

import math

import pytest
import torch
from transformers.core_model_loading import revert_weight_conversion

from control_plane.architecture.describe import describe
from control_plane.architecture.shrink import shrunk
from control_plane.architecture.trial import random_model
from control_plane.inspection.attention import cached_values, context, copied_weights, has_states
from tests.support.models.families import family_config

FAMILIES = (
    "qwen3_moe",
    "gpt_oss",
    "gemma4_text",  # Some layers take keys as values, and heads differ.
    "mimo_v2_flash",  # Keys and values differ in width.
    "phimoe",
    "glm4_moe_lite",  # Latents.
    "qwen3_next",
    "kimi_linear",  # Linear attention has keys, too.
    "minimax",
    "lfm2_moe",
)
WITH_STATES = ("qwen3_next", "kimi_linear", "minimax", "lfm2_moe")


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_values_of_a_token(family: str) -> None:
    config = shrunk(family_config(family))
    model = random_model(config)
    tensors = revert_weight_conversion(model, model.state_dict())
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def cached(length: int) -> int:
        layers = model(input_ids=torch.arange(3, 3 + length)[None], use_cache=True).past_key_values.layers
        parts = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
        return sum(part.numel() for part in parts if isinstance(part, torch.Tensor))

    described = describe(config, shapes)
    found = cached_values(described, config.to_dict())
    assert found == cached(6) - cached(5) > 0
    assert has_states(described) == (family in WITH_STATES)


def test_latents_are_expanded_by_copies_of_weights() -> None:
    config = shrunk(family_config("deepseek_v3"))
    shapes = {name: tuple(tensor.shape) for name, tensor in random_model(config).state_dict().items()}
    found = copied_weights(describe(config, shapes))
    assert found == sum(math.prod(shape) for name, shape in shapes.items() if "kv_b_proj" in name) > 0


def test_context() -> None:
    assert context({}) is None
    assert context({"max_position_embeddings": 4096, "rope_scaling": None}) == 4096
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    assert context({"max_position_embeddings": 4096, "rope_scaling": yarn}) == 16384
    assert context({"max_position_embeddings": 4096, "rope_parameters": {"rope_type": "default"}}) == 4096
