"""Makes a config small, for a model of the same kind that can be tried in seconds."""

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

from control_plane.architecture.sizes import EXPERTS, EXPERTS_PER_TOKEN

HEADS, HEAD_DIM = 4, 8
HIDDEN = HEADS * HEAD_DIM
MAX_LAYERS = 12
"""Layers that are tried at most, if the kinds of layers repeat only after many."""

_SIZES: Mapping[str, int] = {
    "vocab_size": 96,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_attention_heads": HEADS,
    "head_dim": HEAD_DIM,
    "max_position_embeddings": 256,
    # Experts
    "moe_intermediate_size": 24,
    "ffn_hidden_size": 24,
    "expert_ffn_hidden_size": 24,
    "moe_intermediate_dim": 24,
    "shared_expert_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 24,
    "moe_shared_intermediate_size": 24,
    "moe_shared_expert_size": 24,
    "shared_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "moe_layer_start_index": 1,
    # Latent attention
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": HEAD_DIM,
    "qk_nope_head_dim": HEAD_DIM,
    "qk_head_dim": 2 * HEAD_DIM,
    "v_head_dim": HEAD_DIM,
    "index_n_heads": 2,
    "index_head_dim": HEAD_DIM,
    "index_topk": 64,
    # Linear attention, state spaces and convolutions
    "linear_num_value_heads": HEADS,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": HEAD_DIM,
    "linear_value_head_dim": HEAD_DIM,
    "linear_head_dim": HEAD_DIM,
    "linear_num_heads": HEADS,
    "mamba_n_heads": 8,
    "mamba_d_head": HEAD_DIM,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_num_heads": 8,
    "mamba_head_dim": HEAD_DIM,
    "mamba_expand": 2,
    "mamba_dt_rank": 4,
    "ssm_state_size": 8,
    "n_groups": 2,
    "n_group": 2,
    "num_expert_group": 2,
    "topk_group": 1,
    # Attention of several kinds
    "sliding_window": 8,
    "sliding_window_size": 8,
    "swa_num_attention_heads": HEADS,
    "swa_head_dim": HEAD_DIM,
    "unpadded_vocab_size": 96,
    "o_lora_rank": 16,
    "o_groups": 2,
    "attention_chunk_size": 8,
    "global_head_dim": HEAD_DIM,
    "num_global_key_value_heads": 2,
    "vocab_size_per_layer_input": 96,
    "hidden_size_per_layer_input": 8,
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": HEAD_DIM,
    "indexer_budget": 64,
    "indexer_compress_ratio": 4,
    "hc_lowrank": 8,
    "block_size": 4,
}
_NUM_EXPERTS, _MOST_TOP_K = 8, 2
_TWO_PARTS = {"qk_nope_head_dim": HEAD_DIM, "qk_rope_head_dim": HEAD_DIM, "head_dim": 2 * HEAD_DIM}
_ROTATED_PARTS = 8
"""Of a head whose first part is rotated, DeepSeek-V4's, the length of which a factor in its config says."""
_PERIODS = ("_period", "_interval", "_step")
"""Ends of the names of numbers of layers after which their kinds repeat."""
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")


def shrunk(config: PretrainedConfig) -> PretrainedConfig:
    """A config of the same kinds of layers, and of few of them. Raises what the family's own checks raise."""
    own = config.to_dict()
    total: int = config.num_hidden_layers
    layers = _num_layers(own, total)
    document = {**own, **_sizes(own)}
    if "num_hidden_layers" in own:
        document["num_hidden_layers"] = layers
    if "kv_lora_rank" in own:
        # Heads have two parts; it is the size of one of them, which the family sets itself, or of both.
        if (document.pop("head_dim", None) or 0) > own["qk_rope_head_dim"]:
            document |= _TWO_PARTS
    elif "qk_rope_head_dim" in own:
        document["head_dim"] = _ROTATED_PARTS * HEAD_DIM
    for name, value in own.items():
        if isinstance(value, list) and len(value) == total:
            document[name] = value[:layers]
    by_layer = own.get("per_layer_config") or {}
    if by_layer:
        document["per_layer_config"] = {
            number: {**values, **_sizes(values), **(_TWO_PARTS if "qk_nope_head_dim" in values else {})}
            for number, values in by_layer.items()
            if int(number) < layers
        }
    return type(config).from_dict(document)


def _sizes(own: Mapping[str, Any]) -> dict[str, Any]:
    """Small values for what a config has."""
    sizes: dict[str, Any] = {name: size for name, size in _SIZES.items() if _is_size(own.get(name))}
    sizes |= {name: _NUM_EXPERTS for name in EXPERTS if _is_size(own.get(name))}
    sizes |= {name: min(own[name], _MOST_TOP_K) for name in EXPERTS_PER_TOKEN if _is_size(own.get(name))}
    heads = own.get("num_attention_heads")
    sizes |= {
        name: _kv_heads(value, heads) for name, value in own.items() if name.endswith("num_key_value_heads")
    }
    sizes |= {name: 0 for name in _TOKENS if own.get(name) is not None}
    return sizes


def _num_layers(own: Mapping[str, Any], total: int) -> int:
    """As many layers as have each kind, and two at least."""
    by_layer = own.get("per_layer_config") or {}
    kinds = [value for value in own.values() if isinstance(value, list) and len(value) == total and total > 1]
    kinds.append([by_layer.get(f"{number:02}") for number in range(total)])
    periods = [value for name, value in own.items() if name.endswith(_PERIODS) and _is_size(value)]
    needed = max([2, *(period for period in periods if period < MAX_LAYERS)])
    for values in kinds:
        texts = [repr(value) for value in values]
        needed = max(needed, *(texts.index(text) + 1 for text in set(texts)))
    wanted: int = max(needed + 1, 4)
    return min(wanted, total, MAX_LAYERS)


def _kv_heads(own: Any, heads: Any) -> Any:
    """As many as queries where they were, one where it was one, else half as many."""
    if not _is_size(own) or own == 1:
        return own
    return HEADS if own == heads else HEADS // 2


def _is_size(value: object) -> bool:
    return type(value) is int and value > 0
