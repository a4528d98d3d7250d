"""Attention over a ragged batch: the rows of several sequences in one flat tensor, each with its own past.

Registered with transformers under one name, it serves every model family: projections, norms and rotary
embedding stay the family's own, only the step from queries, keys and values to the output is ours.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface

from control_plane.engine.kv_cache import KVCache
from control_plane.engine.scheduler import Chunk

RAGGED_ATTENTION = "faasmoe_ragged"


@dataclass(frozen=True)
class RaggedBatch:
    """The chunks whose rows lie one after the other in the flat batch, and the cache of their past."""

    chunks: list[Chunk]
    kv_cache: KVCache


def register() -> None:
    """Make `attn_implementation=RAGGED_ATTENTION` known to transformers; it needs no mask from it."""
    AttentionInterface.register(RAGGED_ATTENTION, ragged_attention)
    AttentionMaskInterface.register(RAGGED_ATTENTION, _no_mask)


def ragged_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    ragged_batch: RaggedBatch,
    sliding_window: int | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention of each chunk over its own sequence, whose new keys and values are kept first.

    query is [1, heads, N, head_dim], key and value are [1, kv_heads, N, head_dim] over the N rows of all
    chunks. Returns [1, N, heads, head_dim], as transformers expects, and no attention weights.
    """
    window = sliding_window or getattr(module, "sliding_window", None)
    keys, values = key[0].transpose(0, 1), value[0].transpose(0, 1)
    outputs = []
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    row = 0
    for chunk in ragged_batch.chunks:
        rows = slice(row, row + chunk.length)
        row += chunk.length
        ragged_batch.kv_cache.write(layer, chunk.sequence, chunk.start, keys[rows], values[rows])
        past = ragged_batch.kv_cache.read(layer, chunk.sequence, chunk.start + chunk.length)
        outputs.append(_attend(query[:, :, rows], *past, chunk.start, scaling, window))
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    start: int,
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    """Queries [1, heads, n, d] from position `start` on, attending to keys and values [L, kv_heads, d]."""
    mask = None
    causal = False
    if window is not None and len(keys) > window:
        mask = _causal_mask(start, len(keys), window)
    elif start == 0:
        causal = query.shape[2] > 1
    elif query.shape[2] > 1:
        mask = _causal_mask(start, len(keys), None)
    return F.scaled_dot_product_attention(
        query,
        keys.transpose(0, 1)[None],
        values.transpose(0, 1)[None],
        attn_mask=mask,
        is_causal=causal,
        scale=scaling,
        enable_gqa=query.shape[1] != keys.shape[1],
    )


def _causal_mask(start: int, length: int, window: int | None) -> torch.Tensor:
    """[length - start, length]: True where the token at a row's position may look at a column's."""
    positions = torch.arange(start, length)[:, None]
    columns = torch.arange(length)[None, :]
    mask = columns <= positions
    return mask if window is None else mask & (columns > positions - window)


def _no_mask(*_: object, **__: object) -> None:
    return None
