"""The file for llama.cpp holds what a checkpoint of the same seed and skew holds."""

from pathlib import Path

import numpy as np

from bench.llama_cpp_model import Qwen2Moe, quantize
from bench.random_weights import RandomWeights
from scripts.make_checkpoint import random_checkpoint
from tests.checkpoints import tiny_config

SIZES = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 96,
}


def dequantized(blocks: np.ndarray) -> np.ndarray:
    return (blocks["values"].astype(np.float32) * blocks["scale"].astype(np.float32)[:, None]).ravel()


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


def test_chunks_have_the_bytes_that_the_header_will_say(tmp_path: Path) -> None:
    config = tiny_config("qwen2_moe", dtype="bfloat16", **SIZES)
    model = Qwen2Moe(random_checkpoint(config, tmp_path).config, RandomWeights(tmp_path))
    for tensor in model.tensors():
        assert sum(chunk.nbytes for chunk in tensor.chunks()) == tensor.nbytes, tensor.name
        assert tensor.quantized == (len(tensor.shape) > 1 and "ffn_gate_inp" not in tensor.name), tensor.name
