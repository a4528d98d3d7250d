"""The GGUF file has the same weights as a checkpoint with the same seed and skew."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from bench.support.checkpoint import random_checkpoint
from bench.support.gguf import Qwen2Moe, write
from bench.support.gguf_tensors import BF16, F32, Q8_0, quantize
from bench.support.random_weights import RandomWeights
from control_plane.partition.checkpoint.reader import Checkpoint
from functions.kernels.bfloat16 import f32_to_bf16
from tests.support.models.checkpoints import save_checkpoint, tiny_config, tiny_model

SIZES = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 96,
}


def dequantized(blocks: np.ndarray) -> np.ndarray:
    return (blocks["values"].astype(np.float32) * blocks["scale"].astype(np.float32)[:, None]).ravel()


def field(reader: gguf.GGUFReader, name: str) -> Any:
    found = reader.get_field(name)
    assert found is not None
    return found.contents()


def test_quantized_values_are_within_half_a_step() -> None:
    values = np.random.default_rng(0).standard_normal(64 * 32).astype(np.float32)
    values[:32] = 0
    blocks = quantize(values)
    assert blocks.dtype.itemsize * len(blocks) == len(values) // 32 * 34
    # float16 scales are off by up to 1 in 2048, of up to 127 steps.
    step = np.repeat(blocks["scale"].astype(np.float32), 32)
    assert (np.abs(dequantized(blocks) - values) <= (0.5 + 127 / 2048) * step + 1e-9).all()


def test_every_tensor_of_the_checkpoint_is_there_once(tmp_path: Path) -> None:
    config = tiny_config("qwen2_moe", dtype="bfloat16", **SIZES)
    checkpoint = random_checkpoint(config, tmp_path, seed=5, router_skew=1.0)
    model = Qwen2Moe(checkpoint.config, RandomWeights(tmp_path, 5, 1.0))
    sources = [source for tensor in model.tensors() for source in tensor.sources]
    assert {source.name: source.shape for source in sources} == {
        name: tensor.shape for name, tensor in checkpoint.tensors.items()
    }
    assert len(sources) == len(checkpoint.tensors)
    for source in sources:
        assert (source.read(0, source.size) == checkpoint.tensors[source.name].read(0, source.size)).all()


@pytest.mark.parametrize("matrices", [BF16, Q8_0])
def test_chunks_have_the_size_that_the_header_declares(tmp_path: Path, matrices: str) -> None:
    config = tiny_config("qwen2_moe", dtype="bfloat16", **SIZES)
    model = Qwen2Moe(random_checkpoint(config, tmp_path).config, RandomWeights(tmp_path), matrices)
    for tensor in model.tensors():
        assert sum(chunk.nbytes for chunk in tensor.chunks()) == tensor.nbytes, tensor.name
        is_matrix = len(tensor.shape) > 1 and "ffn_gate_inp" not in tensor.name
        assert tensor.kind == (matrices if is_matrix else F32), tensor.name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_checkpoint_is_written_in_bf16(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = save_checkpoint(tiny_model("qwen2_moe", dtype=dtype, **SIZES), tmp_path / "model")
    checkpoint = Checkpoint.open(folder)
    experts = checkpoint.config["num_experts"]

    def bits(name: str) -> np.ndarray:
        tensor = checkpoint.tensors[name]
        values = tensor.read(0, tensor.size)
        return values if values.dtype == np.uint16 else f32_to_bf16(values)

    write(Qwen2Moe.of_checkpoint(folder), tmp_path / "model.gguf")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    assert field(reader, "qwen2moe.expert_count") == experts
    assert len(field(reader, "tokenizer.ggml.tokens")) == checkpoint.config["vocab_size"]
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    head = tensors["output.weight"]
    assert head.tensor_type == gguf.GGMLQuantizationType.BF16
    assert (head.data.view(np.uint16).ravel() == bits("lm_head.weight")).all()
    up = tensors["blk.0.ffn_up_exps.weight"].data.view(np.uint16).reshape(experts, -1)
    assert (up[-1] == bits(f"model.layers.0.mlp.experts.{experts - 1}.up_proj.weight")).all()
    assert tensors["output_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32
