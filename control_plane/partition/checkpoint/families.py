"""The model families that can be split, and the sizes in their config.json.

To add a family, add a `Family` to `FAMILIES`. Its names and keys are those of transformers'
`models/<model_type>/` and `conversion_mapping.py`; the defaults fit most families. Change `_moe_layers` only
if config.json names layers without experts in a new way. To serve the family, add it to the engine's table of
replaced modules (`model_type` in `control_plane/engine/`), with its attention. To test both, add a config to
`tests/support/models/checkpoints.py`: the tests of partitions and of the engine run for each family there.
"""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from control_plane.errors import PartitionError, UnsupportedModel
from control_plane.partition.checkpoint.rope import check_rope
from functions.contract.manifest import MAX_EXPERTS

MAX_LAYERS = 10_000
MAX_WIDTH = 1 << 20
"""The largest hidden size, and the largest width of an expert."""


@dataclass(frozen=True)
class Family:
    """The names that one family uses for its routed experts.

    `model_type` is the value in config.json. `modules` are the names of a layer's MoE module in checkpoints;
    `gate`, `up` and `down` are the names of an expert's matrices there. `expert_width` is the key of
    config.json with the experts' intermediate size.
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
    """The values of a model's config.json that the partitioner needs."""

    family: Family
    hidden_size: int
    intermediate_size: int
    num_experts: int
    num_experts_per_tok: int
    moe_layers: tuple[int, ...]

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "ModelConfig":
        """Read the object in config.json.

        Raises UnsupportedModel for a model that cannot be split, PartitionError for a missing or wrong value.
        """
        family = _family(config.get("model_type"))
        _refuse_variants(config)
        # transformers 5 writes num_local_experts where older versions wrote num_experts.
        experts_key = "num_experts" if "num_experts" in config else "num_local_experts"
        return cls(
            family=family,
            hidden_size=_size(config, "hidden_size", MAX_WIDTH),
            intermediate_size=_size(config, family.expert_width, MAX_WIDTH),
            num_experts=(num_experts := _size(config, experts_key, MAX_EXPERTS)),
            num_experts_per_tok=_size(config, "num_experts_per_tok", num_experts),
            moe_layers=_moe_layers(config),
        )


def _family(model_type: object) -> Family:
    for family in FAMILIES:
        if family.model_type == model_type:
            return family
    supported = ", ".join(sorted(family.model_type for family in FAMILIES))
    raise UnsupportedModel(f"model type {reprlib.repr(model_type)} is not supported; these are: {supported}")


def _refuse_variants(config: Mapping[str, Any]) -> None:
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise UnsupportedModel(f"hidden_act {reprlib.repr(activation)} is not supported, only silu")
    check_rope(config)


def _moe_layers(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The layers with experts: all, except those that Qwen's two keys for dense layers exclude."""
    step = _size({"decoder_sparse_step": 1, **config}, "decoder_sparse_step", MAX_LAYERS)
    dense = config.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(type(layer) is int for layer in dense):
        raise PartitionError(f"config.json: mlp_only_layers is {reprlib.repr(dense)}, not a list of numbers")
    without = set(dense)
    layers = range(_size(config, "num_hidden_layers", MAX_LAYERS))
    moe_layers = tuple(layer for layer in layers if (layer + 1) % step == 0 and layer not in without)
    if not moe_layers:
        raise UnsupportedModel("the model has no layer with experts")
    return moe_layers


def _size(config: Mapping[str, Any], key: str, largest: int) -> int:
    value = config.get(key)
    if type(value) is not int or not 1 <= value <= largest:
        raise PartitionError(f"config.json: {key} is {reprlib.repr(value)}, not a number from 1 to {largest}")
    return value
