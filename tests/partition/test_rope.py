"""Scaled rotary embeddings lengthen the context as vLLM reckons, and never shorten it."""

from typing import Any

import pytest

from control_plane.partition.checkpoint.rope import context_length
from tests.support.models.checkpoints import tiny_config


@pytest.mark.parametrize(
    ("stated", "rope", "expected"),
    [
        (256, {"rope_type": "default"}, 256),
        (256, {"rope_type": "yarn", "factor": 4.0}, 1024),
        # Qwen3's recipe: the stated context has room for an answer beyond that of the training.
        (
            40960,
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            131072,
        ),
        (40960, {"rope_type": "yarn", "factor": 1.0, "original_max_position_embeddings": 32768}, 40960),
        # DeepSeek and gpt-oss state the lengthened context.
        (
            163840,
            {"rope_type": "yarn", "factor": 40, "original_max_position_embeddings": 4096},
            163840,
        ),
        (1024, {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 256}, 1024),
        (4096, {"type": "linear", "factor": 4.0}, 16384),
        (100, {"rope_type": "linear", "factor": 1.255}, 125),
        # Llama 3.2 states the lengthened context, and its factor is not for the context.
        (
            131072,
            {
                "rope_type": "llama3",
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            131072,
        ),
    ],
)
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_the_context(key: str, stated: int, rope: dict[str, Any], expected: int) -> None:
    config = tiny_config("qwen3_moe", max_position_embeddings=stated, **{key: dict(rope)})
    assert context_length(config.max_position_embeddings, config.rope_parameters) == expected


def test_a_config_without_rotary_embeddings() -> None:
    assert context_length(256, None) == 256
