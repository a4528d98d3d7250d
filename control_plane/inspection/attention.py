"""What one token adds to the memory for sequences, by the shapes of the attention's matrices."""

import math
import re
from collections.abc import Mapping
from typing import Any

from control_plane.partition.checkpoint.rope import context_length
from control_plane.partition.model.architecture import Architecture

_KEYS = re.compile(r"(?P<module>.+)\.k_proj\.weight")
_FUSED = re.compile(r"(?P<module>.+)\.(qkv_proj|query_key_value|Wqkv)\.weight")
_LATENT = re.compile(r"(?P<module>.+)\.kv_b_proj\.weight")
_LAYER = re.compile(r"layers\.(\d+)\.")


def cached_values(architecture: Architecture, config: Mapping[str, Any]) -> int:
    """Numbers that are kept of each token in all layers: keys and values, or the latents of both.

    `config` is the language model's. 0 for a model without attention that is known. Layers with states of a
    fixed size add nothing.
    """
    shapes = {name: entry.shape for name, entry in architecture.dense.items() if len(entry.shape) == 2}
    return sum(_of_tensor(name, shapes, config) for name in shapes if not _is_linear(name, config))


def copied_weights(architecture: Architecture) -> int:
    """Weights that the ragged way copies when it is loaded, in the activations' type: those of latents."""
    if architecture.way != "ragged":
        return 0
    return sum(
        math.prod(entry.shape) for name, entry in architecture.dense.items() if _LATENT.fullmatch(name)
    )


def _is_linear(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a tensor is of a layer with linear attention, which has a state in place of a cache."""
    kinds, layer = config.get("layer_types"), _LAYER.search(name)
    if layer is None or not isinstance(kinds, list) or int(layer[1]) >= len(kinds):
        return False
    return "linear" in str(kinds[int(layer[1])])


def has_states(architecture: Architecture) -> bool:
    """Whether a sequence has states besides keys and values.

    Modules that have them hold tensors of three dimensions, a convolution's or rates of decay.
    """
    return architecture.way == "lockstep" or any(
        len(entry.shape) == 3 for entry in architecture.dense.values()
    )


def context(config: Mapping[str, Any]) -> int | None:
    """The tokens of the longest sequence; None if config.json does not say."""
    stated = config.get("max_position_embeddings")
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if type(stated) is not int:
        return None
    if not isinstance(rope, dict):
        return stated
    # Older files call the type of the scaling `type`.
    return context_length(stated, {"rope_type": rope.get("type"), **rope})


def _of_tensor(name: str, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> int:
    if found := _KEYS.fullmatch(name):
        keys = shapes[name][0]
        # Some layers take the keys as values.
        return keys + shapes.get(f"{found['module']}.v_proj.weight", shapes[name])[0]
    if found := _FUSED.fullmatch(name):
        outputs = [f"{found['module']}.{output}.weight" for output in ("o_proj", "out_proj", "dense")]
        queries = next((shapes[output][1] for output in outputs if output in shapes), 0)
        return max(0, shapes[name][0] - queries)
    if _LATENT.fullmatch(name):
        rotated = config.get("qk_rope_head_dim")
        return shapes[name][1] + (rotated if type(rotated) is int else 0)
    return 0
