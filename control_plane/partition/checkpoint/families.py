"""The model families that can be split, and what their config.json says about the experts.

Names and keys as in transformers' `models/<model_type>/` and its `conversion_mapping.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from control_plane.errors import PartitionError, UnsupportedModel


@dataclass(frozen=True)
class Family:
    """Where one family keeps its routed experts.

    `modules` are the names that a layer's MoE module has in checkpoints; `gate`, `up` and `down` are an
    expert's matrices there; `expert_width` is the key of config.json with their intermediate size.
    """

    model_type: str
    modules: tuple[str, ...] = ("mlp",)
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    expert_width: str = "moe_intermediate_size"


FAMILIES = (
    Family("qwen2_moe"),
    Family("qwen3_moe"),
    Family("olmoe", expert_width="intermediate_size"),
    Family(
        "mixtral",
        modules=("block_sparse_moe", "mlp"),
        gate="w1",
        up="w3",
        down="w2",
        expert_width="intermediate_size",
    ),
)


@dataclass(frozen=True)
class ModelConfig:
    """What the partitioner needs of a model's config.json."""

    family: Family
    hidden_size: int
    intermediate_size: int
    num_experts: int
    num_experts_per_tok: int
    moe_layers: tuple[int, ...]

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "ModelConfig":
        """Read config.json's object.

        Raises UnsupportedModel for what cannot be split, and PartitionError for a missing or wrong value.
        """
        family = _family(config.get("model_type"))
        _refuse_variants(config)
        # transformers 5 writes num_local_experts where older versions wrote num_experts.
        experts_key = "num_experts" if "num_experts" in config else "num_local_experts"
        return cls(
            family=family,
            hidden_size=_size(config, "hidden_size"),
            intermediate_size=_size(config, family.expert_width),
            num_experts=_size(config, experts_key),
            num_experts_per_tok=_size(config, "num_experts_per_tok"),
            moe_layers=_moe_layers(config),
        )


def _family(model_type: object) -> Family:
    for family in FAMILIES:
        if family.model_type == model_type:
            return family
    supported = ", ".join(sorted(family.model_type for family in FAMILIES))
    raise UnsupportedModel(f"model type {model_type!r} is not supported; these are: {supported}")


def _refuse_variants(config: Mapping[str, Any]) -> None:
    quantization = config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method", "unknown") if isinstance(quantization, dict) else "unknown"
        raise UnsupportedModel(
            f"the checkpoint is quantised ({method}); split the original one, if need be with dtype int8"
        )
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise UnsupportedModel(f"hidden_act {activation!r} is not supported, only silu")


def _moe_layers(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The layers with experts: all of them, but for Qwen's `decoder_sparse_step` and `mlp_only_layers`."""
    step = _size({"decoder_sparse_step": 1, **config}, "decoder_sparse_step")
    dense = config.get("mlp_only_layers") or []
    if not isinstance(dense, list):
        raise PartitionError(f"config.json: mlp_only_layers is {dense!r}, not a list")
    layers = range(_size(config, "num_hidden_layers"))
    moe_layers = tuple(layer for layer in layers if (layer + 1) % step == 0 and layer not in dense)
    if not moe_layers:
        raise UnsupportedModel("the model has no layer with experts")
    return moe_layers


def _size(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise PartitionError(f"config.json: {key} is {value!r}, not a positive number")
    return value
