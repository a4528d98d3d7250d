"""A tiny model for all targets: small enough that thousands of inputs take seconds."""

from pathlib import Path

from transformers import AutoConfig

from bench.support.checkpoint import random_checkpoint, write_weights
from control_plane.partition.checkpoint.reader import WEIGHTS_FILE
from control_plane.partition.granularity import Granularity
from control_plane.partition.manifest import Manifest
from control_plane.partition.partitioner import partition

CHECKPOINT = "checkpoint"
DTYPES = ("bf16", "int8", "int4")
"""The partitions, which are folders of these names: by the dtype of their experts."""
_CHAT_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
_CONTEXT = 96
"""Tokens: an answer that is to have more is refused, or ends early."""


def write(folder: Path) -> None:
    """Write a checkpoint of two layers of three experts, and its partitions, to the folder."""
    config = AutoConfig.for_model(
        "qwen2_moe",
        hidden_size=24,
        intermediate_size=40,
        moe_intermediate_size=20,
        shared_expert_intermediate_size=28,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_experts=3,
        num_experts_per_tok=2,
        max_position_embeddings=_CONTEXT,
        vocab_size=256,
        dtype="bfloat16",
    )
    source = folder / CHECKPOINT
    source.mkdir()
    checkpoint = random_checkpoint(config, source)
    (source / "chat_template.jinja").write_text(_CHAT_TEMPLATE)
    write_weights(checkpoint.tensors, source / WEIGHTS_FILE)
    for dtype in DTYPES:
        partition(source, folder / dtype, granularity=Granularity(2, 1), dtype=dtype, name="fuzz")


def manifest(folder: Path, dtype: str) -> Manifest:
    """The manifest of a partition in the folder that `write` wrote."""
    return Manifest.load(folder / dtype)
