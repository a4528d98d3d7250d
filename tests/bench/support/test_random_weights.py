"""Random checkpoints are the same whichever way they are written, and have the requested router skew."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PreTrainedModel

from bench.support.checkpoint import random_checkpoint, write_weights
from bench.support.random_weights import RandomTensor, RandomWeights
from control_plane.partition.checkpoint.tensors.tensor import CHUNK_VALUES
from control_plane.partition.granularity import Granularity
from control_plane.partition.partitioner import partition
from tests.support.models.checkpoints import FAMILIES, tiny_config

pytestmark = pytest.mark.slow

EXPERTS, TOP_K, LAYERS, ROWS = 32, 4, 6, 256
SKEWED_SIZES = {
    "hidden_size": 128,
    "num_experts": EXPERTS,
    "num_experts_per_tok": TOP_K,
    "num_hidden_layers": LAYERS,
    "vocab_size": 512,
    "max_position_embeddings": ROWS,
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtypes", [("auto", "auto"), ("int8", "int8")], ids="-".join)
def test_direct_partition_is_that_of_the_checkpoint(
    tmp_path: Path, family: str, dtypes: tuple[str, str]
) -> None:
    options: dict[str, Any] = {
        "granularity": Granularity(2, 2),
        "dtype": dtypes[0],
        "dense_dtype": dtypes[1],
        "name": "m",
    }
    for folder in ("random", "stored"):
        (tmp_path / folder).mkdir()
    config = tiny_config(family, dtype="bfloat16")
    checkpoint = random_checkpoint(config, tmp_path / "random", seed=3, router_skew=1.0)
    random_checkpoint(config, tmp_path / "stored", seed=3, router_skew=1.0)
    write_weights(checkpoint.tensors, tmp_path / "stored" / "model.safetensors")
    direct = partition(checkpoint, tmp_path / "direct", **options)
    assert direct.fingerprint == partition(tmp_path / "stored", tmp_path / "other", **options).fingerprint


def test_pieces_are_parts_of_the_whole() -> None:
    rows, columns = 3, CHUNK_VALUES - 7
    for name in ("model.embed_tokens.weight", "model.layers.0.self_attn.o_proj.weight", "lm_head.weight"):
        tensor = make(name, (rows, columns))
        whole = np.concatenate(list(tensor.chunks()))
        assert len(whole) == rows * columns
        for start, count in (
            (0, 5),
            (columns - 1, 3),
            (columns, 1),
            (CHUNK_VALUES - 2, 4),
            (77, 2 * columns),
        ):
            assert (tensor.read(start, count) == whole[start : start + count]).all()


def make(name: str, shape: tuple[int, ...], *, seed: int = 0, skew: float = 0.0) -> RandomTensor:
    return RandomWeights(Path("random"), seed, skew).tensor(name, shape)


def values(tensor: RandomTensor) -> NDArray[Any]:
    bits = tensor.read(0, tensor.size).astype(np.uint32) << 16
    return bits.view(np.float32).reshape(tensor.shape)


def test_values_depend_on_seed_and_name() -> None:
    name = "model.layers.0.mlp.experts.0.up_proj.weight"
    first = values(make(name, (64, 48)))
    assert (values(make(name, (64, 48))) == first).all()
    assert (values(make(name, (64, 48), seed=1)) != first).mean() > 0.9
    assert (values(make(name.replace("s.0", "s.1"), (64, 48))) != first).mean() > 0.9


def test_only_the_router_uses_the_constant_dimension() -> None:
    embeddings = values(make("model.embed_tokens.weight", (100, 64)))
    assert np.ptp(embeddings[:, 0]) == 0
    assert embeddings[0, 0] > 3 * embeddings[:, 1:].std()
    assert (values(make("model.layers.1.mlp.experts.3.down_proj.weight", (64, 48)))[0] == 0).all()
    assert (values(make("model.layers.1.mlp.experts.3.up_proj.weight", (48, 64)))[:, 0] == 0).all()
    router = values(make("model.layers.1.mlp.gate.weight", (8, 64), skew=1.0))
    assert np.ptp(router[:, 0]) > 0


def routed(folder: Path, skew: float) -> NDArray[Any]:
    """Experts that a model with this skew chooses for random tokens [layers, rows, top_k]."""
    folder.mkdir()
    config = tiny_config("qwen2_moe", dtype="bfloat16", **SKEWED_SIZES)
    checkpoint = random_checkpoint(config, folder, router_skew=skew)
    write_weights(checkpoint.tensors, folder / "model.safetensors")
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.randint(512, (1, ROWS), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(ids, output_router_logits=True).router_logits
    return np.stack([layer.topk(TOP_K).indices.numpy() for layer in logits])


def shares(chosen: NDArray[Any]) -> NDArray[Any]:
    """Share of each layer's routes that go to the most used quarter of its experts [layers]."""
    uses = np.stack([np.bincount(layer.ravel(), minlength=EXPERTS) for layer in chosen])
    most_used: NDArray[Any] = np.sort(uses, axis=1)[:, -EXPERTS // 4 :].sum(axis=1)
    return most_used / (ROWS * TOP_K)


def test_router_skew_holds_in_all_layers(tmp_path: Path) -> None:
    uniform, skewed = routed(tmp_path / "uniform", 0.0), routed(tmp_path / "skewed", 1.0)
    assert shares(uniform).max() < 0.42
    assert shares(skewed).min() > 0.52
    hottest = [np.bincount(layer.ravel(), minlength=EXPERTS).argmax() for layer in skewed]
    assert len(set(hottest)) > 1, "the order of experts differs between layers"
    for chosen in (uniform, skewed):
        repeated = (chosen[:, 1:, :, None] == chosen[:, :-1, None, :]).any(axis=-1)
        assert repeated.mean() < 0.5, "the choice varies from token to token"
