"""Tiny random checkpoints of every supported family, written by transformers itself."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from control_plane.errors import PartitionError
from control_plane.partition.partitioner import partition

FAMILIES = ("qwen2_moe", "qwen3_moe", "mixtral", "olmoe")

_COMMON: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_QWEN: dict[str, Any] = {"num_experts": 5, "intermediate_size": 40, "moe_intermediate_size": 20}
_BY_FAMILY: dict[str, dict[str, Any]] = {
    "qwen2_moe": {**_QWEN, "shared_expert_intermediate_size": 28},
    "qwen3_moe": {**_QWEN, "head_dim": 12},
    "mixtral": {"num_local_experts": 5, "intermediate_size": 20},
    "olmoe": {"num_experts": 5, "intermediate_size": 20},
}


def tiny_config(model_type: str, **overrides: Any) -> PretrainedConfig:
    """3 layers of 5 experts, top-2, hidden size 24 and expert width 20: no multiples of a kernel's tile."""
    return AutoConfig.for_model(model_type, **{**_COMMON, **_BY_FAMILY[model_type], **overrides})


def tiny_model(
    model_type: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **overrides: Any
) -> PreTrainedModel:
    """A random model in eval mode; `overrides` change its config."""
    torch.manual_seed(seed)
    factory: Any = AutoModelForCausalLM
    model: PreTrainedModel = factory.from_config(tiny_config(model_type, **overrides)).to(dtype).eval()
    return model


def save_checkpoint(model: PreTrainedModel, folder: Path, *, max_shard_size: str = "1GB") -> Path:
    """Write a model in the published format: one tensor per expert and matrix. Returns `folder`."""
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def save_fused_checkpoint(model: PreTrainedModel, folder: Path) -> Path:
    """Write a model in transformers' own format: two tensors per layer for all experts. Returns `folder`."""
    folder.mkdir()
    model.config.save_pretrained(folder)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def edit_config(checkpoint: Path, **changes: Any) -> None:
    """Change a checkpoint's config.json; `...` removes a value."""
    path = checkpoint / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def refusal(checkpoint: Path, kind: type[Exception] = PartitionError, **options: Any) -> str:
    """The error for a checkpoint, which must leave the folder unchanged."""
    out = checkpoint.parent / "out"
    before = sorted(checkpoint.parent.iterdir())
    with pytest.raises(kind) as caught:
        partition(checkpoint, out, **options)
    assert sorted(checkpoint.parent.iterdir()) == before
    return str(caught.value)
