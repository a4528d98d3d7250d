"""Attention over latents: what the cache keeps of a token, and the ways to compute with it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from control_plane.architecture.shrink import shrunk
from control_plane.architecture.trial import published, random_model
from control_plane.engine.model.transformers_model.layers import PackedLinear
from control_plane.engine.model.transformers_model.ragged import batch as ragged_batch
from control_plane.engine.model.transformers_model.ragged.latents import latents_of
from control_plane.engine.scheduling.chunk import Chunk
from control_plane.partition.partitioner import partition
from tests.support.models.families import family_config
from tests.support.models.modules import modules_of
from tests.support.models.tiny_families import SplitModel, prompts, rest

pytestmark = pytest.mark.slow

FAMILIES = ("deepseek_v2", "deepseek_v3", "glm4_moe_lite", "axk1", "sarvam_mla")
BOUND = 1e-4
"""Of the difference of logits in float32, as in test_ways.py."""
RANK, ROTATED = 512, 64
LITE: dict[str, Any] = {
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "kv_lora_rank": RANK,
    "qk_rope_head_dim": ROTATED,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
}
"""DeepSeek-V2-Lite's attention."""


@pytest.mark.parametrize(("dtype", "itemsize"), [("f32", 4), ("bf16", 2)])
def test_a_token_takes_its_latent(tmp_path: Path, dtype: str, itemsize: int) -> None:
    split = SplitModel.make("deepseek_v2", tmp_path, dtype=dtype, **LITE)
    memory = split.memory()
    layers = split.reference.config.num_hidden_layers
    assert split.model.page_nbytes == layers * (RANK + ROTATED) * itemsize * memory.pages.page_size


@pytest.mark.parametrize("at_once", [1, 1 << 30], ids=["one head at once", "all heads at once"])
@pytest.mark.parametrize("family", FAMILIES)
def test_long_chunks_and_decoding(
    family: str, at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of a long chunk, a short one and a row that decodes, and one after it."""
    monkeypatch.setattr(ragged_batch, "EXPANDED_NBYTES", at_once)
    split = SplitModel.make(family, tmp_path)
    assert any(latents_of(module) for module in split.model.model.modules())
    memory = split.memory()
    sequences = prompts(150, 20, 9)
    for sequence, length in zip(sequences, (70, 13, 8), strict=True):
        assert split.error([Chunk(sequence, 0, length)], memory) < BOUND
        sequence.num_computed = length
    for _ in range(2):
        batch = [rest(sequence) for sequence in sequences]
        assert split.error(batch, memory) < BOUND
        for chunk in batch:
            chunk.sequence.num_computed = chunk.end
            chunk.sequence.token_ids.append(5)


@pytest.mark.parametrize("dense_dtype", ["auto", "int8", "int4"])
def test_packed_weights(dense_dtype: str, tmp_path: Path) -> None:
    """The copies are the packed weights."""
    checkpoint = published(random_model(shrunk(family_config("deepseek_v3"))), tmp_path / "model")
    folder = tmp_path / "partition"
    manifest = partition(checkpoint, folder, dtype="f32", dense_dtype=dense_dtype)
    modules: list[Any] = [module for module in modules_of(folder, manifest).modules() if latents_of(module)]
    assert modules
    for module in modules:
        latents, projection, size = latents_of(module), module.kv_b_proj, module.qk_nope_head_dim
        assert latents is not None
        assert isinstance(projection, PackedLinear)
        stored = torch.randn(7, latents.rank + module.qk_rope_head_dim)
        keys, values = latents.expanded(stored, slice(None))
        expanded = projection(stored[:, : latents.rank]).view(7, len(keys), -1).transpose(0, 1)
        found = torch.cat([keys[..., :size], values], dim=2)
        # Quantised weights have quantised inputs where they are not copied.
        bound = 1e-5 if dense_dtype == "auto" else 2e-2
        assert (found - expanded).abs().max() <= bound * expanded.abs().max()
        rotated = stored[:, latents.rank :].expand(len(keys), -1, -1)
        assert torch.equal(keys[..., size:], rotated)
