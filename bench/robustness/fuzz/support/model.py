"""A tiny model for all targets: small enough that thousands of inputs take seconds."""

from dataclasses import replace
from pathlib import Path

import msgspec
from transformers import AutoConfig

from bench.support.checkpoint import random_checkpoint, write_weights
from control_plane.partition.checkpoint.reader import WEIGHTS_FILE, Checkpoint
from control_plane.partition.granularity import Granularity
from control_plane.partition.manifest import Manifest
from control_plane.partition.model.architecture import Architecture, MatrixEntry
from control_plane.partition.model.inspection import inspect
from control_plane.partition.model.made_tensor import Matrix
from control_plane.partition.partitioner import write_partition
from control_plane.partition.plan import Plan
from functions.kernels import Activation

CHECKPOINT = "checkpoint"
ARCHITECTURE = "architecture.json"
"""What the checkpoint's model is: inspecting it takes seconds."""
DTYPES = ("bf16", "int8", "int4")
"""The partitions, which are folders of these names: by the dtype of their experts."""
BIASED = "int8"
"""The partition whose experts have biases, limits and all else that experts may have."""
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
    opened = Checkpoint.open(source)
    architecture = inspect(opened)
    (folder / ARCHITECTURE).write_bytes(msgspec.json.encode(architecture))
    for dtype in DTYPES:
        plan = Plan.make(opened, architecture, Granularity(2, 1), dtype, "auto", "fuzz")
        write_partition(_biased(plan) if dtype == BIASED else plan, source, folder / dtype)


def _biased(plan: Plan) -> Plan:
    """The plan with experts that compute all that experts may; their first weights are their biases, too."""
    activation, width = Activation(limit=0.5, alpha=1.702, up_offset=1.0), plan.shape.intermediate_size
    experts = {
        key: replace(
            expert,
            gate_bias=Matrix(expert.up.tensor, MatrixEntry("", 0, 1), width, 1),
            up_bias=Matrix(expert.up.tensor, MatrixEntry("", width, 1), width, 1),
            down_bias=Matrix(expert.down.tensor, MatrixEntry("", 0, 1), plan.shape.hidden_size, 1),
        )
        for key, expert in plan.experts.items()
    }
    return replace(plan, shape=replace(plan.shape, activation=activation, has_bias=True), experts=experts)


def architecture(folder: Path) -> Architecture:
    """The architecture in the folder that `write` wrote."""
    return msgspec.json.decode((folder / ARCHITECTURE).read_bytes(), type=Architecture)


def manifest(folder: Path, dtype: str) -> Manifest:
    """The manifest of a partition in the folder that `write` wrote."""
    return Manifest.load(folder / dtype)
