"""A model in GGUF is partitioned like a checkpoint; one that cannot be read is refused with one error."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from control_plane.errors import PartitionError, UnsupportedModel
from control_plane.partition.checkpoint.reader import Checkpoint
from control_plane.partition.companions import update_companions
from control_plane.partition.manifest import Manifest
from control_plane.up import partition_of
from tests.support.command_line import error_line, faasmoe
from tests.support.models.gguf_files import Stored, plain, quantised, write_gguf

HIDDEN, WIDTH, EXPERTS, VOCABULARY = 32, 64, 3, 40
Metadata = dict[str, Any]
Tensors = dict[str, Stored]
Edit = Callable[[Metadata, Tensors], object]


def parts() -> tuple[Metadata, Tensors]:
    """Metadata and tensors of a tiny Mixtral, with experts in Q8_0."""
    random = np.random.default_rng(0)

    def values(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return (random.normal(size=shape) * 0.1).astype(np.float32)

    metadata = {
        "context_length": 64,
        "embedding_length": HIDDEN,
        "block_count": 2,
        "feed_forward_length": WIDTH,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 1e6,
        "rope.dimension_count": 8,
        "expert_count": EXPERTS,
        "expert_used_count": 2,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.eot_token_id": 3,
    }
    tensors = {
        "token_embd.weight": plain(values(VOCABULARY, HIDDEN)),
        "output_norm.weight": plain(values(HIDDEN)),
        "output.weight": plain(values(VOCABULARY, HIDDEN)),
        "rope_freqs.weight": plain(np.ones(4, np.float32)),
    }
    for layer in range(2):
        block = {
            "attn_norm": plain(values(HIDDEN)),
            "ffn_norm": plain(values(HIDDEN)),
            "attn_q": plain(values(32, HIDDEN)),
            "attn_k": plain(values(16, HIDDEN)),
            "attn_v": plain(values(16, HIDDEN)),
            "attn_output": plain(values(HIDDEN, 32)),
            "ffn_gate_inp": plain(values(EXPERTS, HIDDEN)),
            "ffn_gate_exps": quantised(values(EXPERTS, WIDTH, HIDDEN), "Q8_0"),
            "ffn_up_exps": quantised(values(EXPERTS, WIDTH, HIDDEN), "Q8_0"),
            "ffn_down_exps": quantised(values(EXPERTS, HIDDEN, WIDTH), "Q8_0"),
        }
        tensors |= {f"blk.{layer}.{name}.weight": stored for name, stored in block.items()}
    return metadata, tensors


def write(path: Path, edit: Edit = lambda metadata, tensors: None, architecture: str = "llama") -> Path:
    metadata, tensors = parts()
    edit(metadata, tensors)
    return write_gguf(path, architecture, metadata, tensors)


def test_partition_on_the_command_line(tmp_path: Path) -> None:
    file = write(tmp_path / "Tiny-8x7B-Q8_0.gguf", put("general.sampling.temp", 0.6))
    faasmoe("partition", file, tmp_path / "out")
    manifest = Manifest.load(tmp_path / "out")
    manifest.verify(tmp_path / "out")
    assert manifest.name == "tiny-8x7b-q8-0"
    assert (manifest.model_type, manifest.gate_up_dtype, manifest.dtype) == ("mixtral", "int8", "bf16")
    assert set(manifest.files) == {"config.json", "generation_config.json"}
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["temperature"]) == ([2, 3], 0.6)


def test_small_files_are_compared_with_the_metadata(tmp_path: Path) -> None:
    file = write(tmp_path / "tiny.gguf")
    said: list[str] = []
    folder = partition_of(file, said.append)
    assert folder == tmp_path / "tiny.faasmoe"
    assert partition_of(file, said.append) == folder
    assert len(said) == 1
    assert update_companions(file, folder) == []
    later = (folder / "manifest.json").stat().st_mtime + 1
    os.utime(file, (later, later))
    with pytest.raises(PartitionError, match="has changed after its partition was made"):
        update_companions(file, folder)


def pop(name: str) -> Edit:
    return lambda metadata, tensors: tensors.pop(name, None) or metadata.pop(name)


def put(name: str, value: Any) -> Edit:
    return lambda metadata, tensors: metadata.update({name: value})


def add(name: str, *shape: int) -> Edit:
    return lambda metadata, tensors: tensors.update({name: plain(np.ones(shape, np.float32))})


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (pop("token_embd.weight"), "has no token_embd.weight"),
        (pop("blk.1.ffn_up_exps.weight"), "layer 1 has no ffn_up_exps.weight"),
        (pop("expert_count"), "the metadata has no llama.expert_count"),
        (put("block_count", "two"), "the metadata's llama.block_count is 'two', not a whole number"),
        (put("block_count", 2.5), "the metadata's llama.block_count is 2.5, not a whole number"),
        (put("expert_count", [3, 1 << 20]), "llama.expert_count is [3, 1048576], not the same in all layers"),
        (put("rope.freq_base", float("nan")), "llama.rope.freq_base is nan, not a number"),
        (put("rope.scaling.type", "longrope"), "llama.rope.scaling.type is 'longrope'"),
        (put("tokenizer.ggml.eos_token_id", "two"), "not a token's id"),
        (put("split.count", 3), "says that it is part 0 of 3, not 0 of 1"),
        (add("blk.0.attn_qkv.weight", 64, HIDDEN), "'blk.0.attn_qkv.weight' is no tensor that is known"),
        (add("v.patch.weight", 2, 2), "'v.patch.weight' is no tensor that is known"),
        (add("blk.0.post_attention_norm.weight", HIDDEN), "twice, by different names"),
        (add("blk.1.ffn_up_exps.weight", EXPERTS, WIDTH, 16), "is [3, 64, 16]"),
        (add("blk.1.attn_k.weight", 18, HIDDEN), "has 18 rows for 2 heads"),
    ],
)
def test_models_that_do_not_fit_together(edit: Edit, problem: str, tmp_path: Path) -> None:
    file = write(tmp_path / "tiny.gguf", edit)
    line = error_line(faasmoe("partition", file, tmp_path / "out"))
    assert problem in line
    assert len(line) < 600


def test_a_model_without_experts(tmp_path: Path) -> None:
    def edit(metadata: Metadata, tensors: Tensors) -> None:
        for name in [name for name in tensors if "_exps" in name]:
            del tensors[name]

    with pytest.raises(PartitionError, match="only mixtures of experts can be split"):
        Checkpoint.open(write(tmp_path / "tiny.gguf", edit))


def test_an_unknown_architecture(tmp_path: Path) -> None:
    with pytest.raises(
        UnsupportedModel, match=r"is of the architecture 'grok'; these are supported: deepseek2,"
    ):
        Checkpoint.open(write(tmp_path / "tiny.gguf", architecture="grok"))


def test_layers_that_predict_ahead_are_left_out(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write(tmp_path / "tiny.gguf", put("nextn_predict_layers", 1)))
    assert checkpoint.config["num_hidden_layers"] == 1
    assert not any(name.startswith("model.layers.1.") for name in checkpoint.tensors)


def test_a_tied_head(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write(tmp_path / "tiny.gguf", pop("output.weight")))
    assert checkpoint.config["tie_word_embeddings"] is True
    assert "lm_head.weight" not in checkpoint.tensors
