"""What the dense part of a model computes, by its config.json, with transformers' defaults for missing keys.

transformers would read the file, too, but brings torch along, which takes a second and 150 MB.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct

from control_plane.errors import PartitionError
from control_plane.files import read_json_object
from control_plane.partition.checkpoint.reader import CONFIG_FILE, MAX_CONFIG_NBYTES
from control_plane.partition.checkpoint.rope import check_rope
from control_plane.partition.model.architecture import MAX_LAYERS, MAX_WIDTH
from control_plane.validation import Invalid, convert

_Size = Annotated[int, Meta(ge=1, le=MAX_WIDTH)]
_Tokens = Annotated[int, Meta(ge=1, le=1 << 32)]
_Positive = Annotated[float, Meta(gt=0)]

_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "qwen2_moe": {
        "num_key_value_heads": 16,
        "sliding_window": 4096,
        "qkv_bias": True,
        "shared_expert_intermediate_size": 5632,
        "norm_topk_prob": False,
    },
    "qwen3_moe": {"num_key_value_heads": 4, "sliding_window": 4096, "norm_topk_prob": False},
    "mixtral": {"num_key_value_heads": 8, "rope_theta": 1e6, "norm_topk_prob": True},
    "olmoe": {"norm_topk_prob": False},
}
"""Values of missing keys, by family. Mixtral has no `norm_topk_prob`: its weights always add up to 1."""
_SWITCHED_WINDOW = frozenset({"qwen2_moe", "qwen3_moe"})
"""Families whose `sliding_window` counts only with `use_sliding_window`."""


class _Config(Struct, frozen=True):
    """The keys that are read. What is null counts as missing."""

    model_type: str
    vocab_size: _Tokens
    hidden_size: _Size
    num_hidden_layers: Annotated[int, Meta(ge=1, le=MAX_LAYERS)]
    num_attention_heads: _Size
    num_experts_per_tok: _Size
    max_position_embeddings: _Tokens
    rms_norm_eps: _Positive
    norm_topk_prob: bool
    intermediate_size: _Size
    num_key_value_heads: _Size | None = None
    head_dim: _Size | None = None
    shared_expert_intermediate_size: _Size | None = None
    attention_bias: bool = False
    qkv_bias: bool = False
    clip_qkv: _Positive | None = None
    sliding_window: Annotated[int, Meta(ge=0, le=1 << 32)] | None = None
    use_sliding_window: bool = False
    max_window_layers: int = 28
    layer_types: tuple[str, ...] | None = None
    rope_theta: _Positive = 1e4


class DenseConfig(Struct, frozen=True):
    """The numbers of a model's dense part, by transformers' names."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope_parameters: Mapping[str, Any]
    """With `rope_type` and `rope_theta`."""
    biased: str
    """Which of the projections q, k, v and o have a bias."""
    clip_qkv: float | None
    windows: tuple[int | None, ...]
    """For each layer, the most tokens that a row sees; None for all."""
    num_experts_per_tok: int
    norm_topk_prob: bool
    """Whether the weights of a row's experts add up to 1."""
    shared_expert_intermediate_size: int | None
    """None for a family without shared experts."""
    dense_width: int
    """The largest intermediate size in the dense part."""

    @classmethod
    def load(cls, folder: Path) -> "DenseConfig":
        """Read the config.json in a folder. Raises `PartitionError`."""
        return cls.from_json(read_json_object(folder / CONFIG_FILE, MAX_CONFIG_NBYTES))

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "DenseConfig":
        """Read the object in config.json of a supported family.

        Raises `PartitionError` for a missing or wrong value, UnsupportedModel for a kind of rotary embedding
        that cannot be served.
        """
        check_rope(config)
        known = {key: value for key, value in config.items() if value is not None}
        defaults = _DEFAULTS.get(str(config.get("model_type")), {})
        try:
            read = convert({**defaults, **known}, _Config)
        except Invalid as error:
            raise PartitionError(f"config.json: {error}") from error
        heads = read.num_attention_heads
        shared = read.shared_expert_intermediate_size
        return cls(
            model_type=read.model_type,
            vocab_size=read.vocab_size,
            hidden_size=read.hidden_size,
            num_hidden_layers=read.num_hidden_layers,
            num_attention_heads=heads,
            num_key_value_heads=read.num_key_value_heads or heads,
            head_dim=read.head_dim or _whole(read.hidden_size, heads),
            rms_norm_eps=read.rms_norm_eps,
            max_position_embeddings=read.max_position_embeddings,
            rope_parameters=_rope(config, read),
            biased="qkvo" if read.attention_bias else "qkv" if read.qkv_bias else "",
            clip_qkv=read.clip_qkv,
            windows=_windows(read),
            num_experts_per_tok=read.num_experts_per_tok,
            norm_topk_prob=read.norm_topk_prob,
            shared_expert_intermediate_size=shared,
            dense_width=max(read.intermediate_size, shared or 1),
        )


def _whole(hidden_size: int, heads: int) -> int:
    """The size of a head, if the config does not state it."""
    if hidden_size < heads:
        raise PartitionError(f"config.json: num_attention_heads is {heads}, hidden_size {hidden_size}")
    return hidden_size // heads


def _rope(config: Mapping[str, Any], read: _Config) -> Mapping[str, Any]:
    """The parameters as transformers 5 keeps them; older files have two keys for them, and other names."""
    stated = config.get("rope_scaling") or config.get("rope_parameters") or {}
    rope = {"rope_theta": read.rope_theta, **stated}
    rope["rope_type"] = rope.get("rope_type", rope.get("type", "default"))
    theta = rope["rope_theta"]
    if type(theta) not in (int, float) or not 0 < theta < 1e30:
        raise PartitionError("config.json: rope_theta must be a number above 0")
    if rope["rope_type"] != "default":
        rope.setdefault("original_max_position_embeddings", read.max_position_embeddings)
    return rope


def _windows(read: _Config) -> tuple[int | None, ...]:
    """Qwen2-MoE's modules have a window in the layers of that type; those of the others, in all layers."""
    window = read.sliding_window or None
    if read.model_type in _SWITCHED_WINDOW and not read.use_sliding_window:
        window = None
    layers = range(read.num_hidden_layers)
    if read.model_type != "qwen2_moe":
        return tuple(window for _ in layers)
    types = read.layer_types or tuple(
        "full_attention" if layer % 2 or layer >= read.max_window_layers else "sliding_attention"
        for layer in layers
    )
    if len(types) != len(layers):
        raise PartitionError(f"config.json: layer_types has {len(types)} layers of {len(layers)}")
    return tuple(window if types[layer] == "sliding_attention" else None for layer in layers)
