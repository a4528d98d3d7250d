"""Checks the sizes in a config.json before anything is built of them."""

import reprlib
from collections.abc import Mapping
from typing import Any

from control_plane.errors import PartitionError
from control_plane.partition.model.limits import MAX_LAYERS, MAX_WIDTH
from functions.contract.manifest import MAX_EXPERTS

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""What configs call the number of experts in a layer."""
EXPERTS_PER_TOKEN = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "top_k_experts",
    "moe_topk",
    "moe_top_k",
    "moe_k",
    "moe_router_topk",
)
"""What they call the number of experts that a token uses."""

_MAX_TOKENS = 1 << 32
_BY_LAYER = ("intermediate_size", "num_attention_heads", "num_key_value_heads")
_LARGEST: Mapping[str, int] = {
    "hidden_size": MAX_WIDTH,
    "num_hidden_layers": MAX_LAYERS,
    "num_attention_heads": MAX_WIDTH,
    "num_key_value_heads": MAX_WIDTH,
    "intermediate_size": MAX_WIDTH,
    "moe_intermediate_size": MAX_WIDTH,
    "shared_expert_intermediate_size": MAX_WIDTH,
    "vocab_size": _MAX_TOKENS,
    "max_position_embeddings": _MAX_TOKENS,
    **dict.fromkeys((*EXPERTS, *EXPERTS_PER_TOKEN), MAX_EXPERTS),
}


def check_sizes(document: Mapping[str, Any]) -> None:
    """Raise PartitionError for a size of a model, or of its language model, that is no possible number."""
    inner = document.get("text_config")
    for part in (document, inner if isinstance(inner, dict) else {}):
        for name, largest in _LARGEST.items():
            value = part.get(name)
            # Null stands for the family's default. Some families have a list of one size for each layer.
            sizes = value if isinstance(value, list) and name in _BY_LAYER else [value]
            if value is not None and not all(type(size) is int and 1 <= size <= largest for size in sizes):
                raise PartitionError(
                    f"config.json: {name} is {reprlib.repr(value)}, not a number from 1 to {largest}"
                )


def experts_per_token(numbers: Mapping[str, Any], num_experts: int) -> int:
    """How many experts a token uses. Raises PartitionError if there are fewer, or the config does not say."""
    for name in EXPERTS_PER_TOKEN:
        value = numbers.get(name)
        if type(value) is int:
            if value > num_experts:
                raise PartitionError(f"config.json: {name} is {value}, but a layer has {num_experts} experts")
            return value
    raise PartitionError("config.json does not say how many experts a token uses")
