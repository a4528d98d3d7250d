"""Attention over latents (MLA, arXiv 2405.04434): all heads' keys and values are products of one row.

A head's score is q . (K c), with its part K of `kv_b_proj` and the token's latent c, which is (K^T q) . c. So
the cache keeps the latents, of which all heads have queries, and what they give is multiplied with the parts
V of values. The rest of a key, which has the rotary embedding, is the same for all heads and is kept beside
the latent.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Latents:
    """The matrices of one module, in the type of the activations."""

    key_weight: torch.Tensor
    """K of each head: [heads, unrotated key size, rank]."""
    value_weight: torch.Tensor
    """V of each head, transposed: [heads, rank, value size]."""

    @property
    def rank(self) -> int:
        """Values in a latent."""
        return self.key_weight.shape[2]

    @property
    def value_size(self) -> int:
        return self.value_weight.shape[2]

    def queries(self, query: torch.Tensor) -> torch.Tensor:
        """Queries of keys [N, heads, size] as queries of latents [N, heads, rank + rotated size]."""
        size = self.key_weight.shape[1]
        unrotated = query[..., :size].transpose(0, 1) @ self.key_weight
        return torch.cat([unrotated.transpose(0, 1), query[..., size:]], dim=2)

    def outputs(self, output: torch.Tensor) -> torch.Tensor:
        """Weighted latents [N, heads, rank] as weighted values [N, heads, value size]."""
        return (output.transpose(0, 1) @ self.value_weight).transpose(0, 1)

    def expanded(self, stored: torch.Tensor, heads: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values [heads, n, size] of some heads, of stored rows [n, rank + rotated size]."""
        latents, rotated = stored[:, : self.rank], stored[:, self.rank :]
        keys = latents @ self.key_weight[heads].transpose(1, 2)
        return torch.cat([keys, rotated.expand(len(keys), -1, -1)], dim=2), latents @ self.value_weight[heads]


def attach_latents(model: nn.Module, dtype: torch.dtype) -> None:
    """Have the model's modules that expand latents pass them on as they are, and be known by `latents_of`.

    `dtype` is that of the activations. The weights must be loaded.
    """
    modules: Any = model.modules()
    for module in modules:
        if hasattr(module, "expand_kv") and getattr(module.kv_b_proj, "bias", None) is None:
            module.ragged_latents = _latents(module, dtype)
            module.expand_kv = _joined


def latents_of(module: nn.Module) -> Latents | None:
    """What the module's attention needs to compute with latents; None for one that has keys and values."""
    return getattr(module, "ragged_latents", None)


def _latents(module: Any, dtype: torch.dtype) -> Latents:
    # The products of unit vectors are the weights, however they are packed.
    products = module.kv_b_proj(torch.eye(module.kv_lora_rank, dtype=dtype))
    sizes = [module.qk_nope_head_dim, module.v_head_dim]
    keys, values = products.view(module.kv_lora_rank, -1, sum(sizes)).split(sizes, dim=2)
    return Latents(keys.permute(1, 2, 0).contiguous(), values.transpose(0, 1).contiguous())


def _joined(latents: torch.Tensor, rotated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """In the place of `expand_kv`: keys [1, 1, N, rank + rotated size], and values as a part of them."""
    stored = torch.cat([latents, rotated], dim=3)
    return stored, stored[..., : latents.shape[3]]
