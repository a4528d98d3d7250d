"""Scaled rotary embeddings: which of them can be served, and how far they lengthen a model's context."""

import math
import reprlib
from collections.abc import Mapping
from typing import Any

from control_plane.errors import PartitionError, UnsupportedModel

_LENGTHENING = ("linear", "yarn")
"""Types whose `factor` says how many times longer the context is than that of the first training."""
_NUMBERS = {
    "default": (),
    "linear": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
"""The types whose frequencies are the same for all sequences, and the numbers that each of them needs."""


def check_rope(config: Mapping[str, Any]) -> None:
    """Check the rotary embeddings of a config.json.

    Raises UnsupportedModel for a type that cannot be served, PartitionError for a missing or wrong value.
    """
    key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    rope = config.get(key) or {}
    if not isinstance(rope, dict):
        raise PartitionError(f"config.json: {key} is {reprlib.repr(rope)}, not an object")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if not isinstance(kind, str) or kind not in _NUMBERS:
        raise UnsupportedModel(
            f"rotary embeddings of type {reprlib.repr(kind)} are not supported, only {', '.join(_NUMBERS)}: "
            "where they depend on a sequence's length, they would mix the sequences of a batch"
        )
    for name in _NUMBERS[kind]:
        # YaRN's factor may be null: it is then the ratio of the two contexts.
        if not (_is_positive(rope.get(name)) or (kind == "yarn" and name in rope and rope[name] is None)):
            raise PartitionError(
                f"config.json: {key}.{name} is {reprlib.repr(rope.get(name))}, not a number above 0"
            )
    original = rope.get("original_max_position_embeddings", 1)
    if type(original) is not int or original < 1:
        where = f"{key}.original_max_position_embeddings"
        raise PartitionError(f"config.json: {where} is {reprlib.repr(original)}, not a number of tokens")


def context_length(max_position_embeddings: int, rope: Mapping[str, Any] | None) -> int:
    """The tokens of the longest sequence, from what transformers has made of config.json.

    Some configs state the lengthened context as `max_position_embeddings`, others the one before; so vLLM
    reckons from `original_max_position_embeddings`, and this is never below what is stated.
    """
    rope = rope or {}
    if rope.get("rope_type") not in _LENGTHENING:
        return max_position_embeddings
    original = rope.get("original_max_position_embeddings") or max_position_embeddings
    return max(max_position_embeddings, int(original * (rope.get("factor") or 1)))


def _is_positive(value: object) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf  # type: ignore[operator]
