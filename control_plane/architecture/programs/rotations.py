"""Finds the rotary embeddings of a model's layers, and how they rotate heads."""

import sys
from typing import Any

import torch
from transformers import PreTrainedModel

from control_plane.errors import UnsupportedModel
from control_plane.partition.model.program import RotationEntry


class Rotations:
    """The rotary embeddings of a model's layers."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.entries: list[RotationEntry] = []
        module: Any = getattr(model.base_model, "rotary_emb", None)
        if module is None:
            raise UnsupportedModel("a layer program needs a rotary embedding")
        with torch.device("cpu"):
            self._module: Any = type(module)(config=model.config)

    def number(self, attention: Any, layer_type: str | None) -> int:
        """That of a layer's embedding, among `entries`. Some families have one for each type of layer."""
        name = f"{layer_type}_" if hasattr(self._module, f"{layer_type}_inv_freq") else ""
        frequencies = tuple(getattr(self._module, f"{name}inv_freq").tolist())
        scale = float(getattr(self._module, f"{name}attention_scaling"))
        entry = RotationEntry(frequencies, scale, _is_interleaved(attention, len(frequencies)))
        if entry not in self.entries:
            self.entries.append(entry)
        return self.entries.index(entry)


def _is_interleaved(attention: Any, pairs: int) -> bool:
    """Whether the function that rotates an attention's heads takes values 2i and 2i + 1 together, instead of
    i and i + pairs. Raises UnsupportedModel if it does neither."""
    rotate = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)
    if rotate is None:
        raise UnsupportedModel("a layer program needs a rotary embedding of queries and keys")
    random = torch.Generator().manual_seed(0)
    heads = torch.randn(1, 1, 1, attention.head_dim, generator=random)
    angles = torch.randn(1, 1, pairs, generator=random)
    found, _ = rotate(heads, heads, angles.tile(2).cos(), angles.tile(2).sin())
    part = heads[..., : 2 * pairs]
    for interleaved in (False, True):
        first, second = (part[..., ::2], part[..., 1::2]) if interleaved else part.chunk(2, dim=-1)
        turned = (
            first * angles.cos() - second * angles.sin(),
            second * angles.cos() + first * angles.sin(),
        )
        whole = torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)
        if torch.allclose(found, torch.cat([whole, heads[..., 2 * pairs :]], dim=-1), atol=1e-5):
            return interleaved
    raise UnsupportedModel("a layer program has no such rotary embedding")
