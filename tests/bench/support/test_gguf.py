"""The GGUF file has the weights of its checkpoint, as llama.cpp's conversion would have them."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

from bench.support.checkpoint import random_checkpoint, write_weights
from bench.support.gguf.__main__ import main
from bench.support.gguf.conversion import converted
from bench.support.gguf.model import MODEL_TYPES, GgufModel
from bench.support.gguf.tensors import BF16, F32, MXFP4, Q4_0, Q8_0, quantize
from bench.support.gguf.writer import write
from control_plane.errors import UnsupportedModel
from control_plane.partition.checkpoint.reader import WEIGHTS_FILE, Checkpoint
from functions.kernels.bfloat16 import Float32
from tests.support.models.gguf_models import gguf_config

SIZES: dict[str, dict[str, Any]] = {
    "gpt_oss": {"intermediate_size": 64},
    "qwen3_moe": {"moe_intermediate_size": 64, "head_dim": 16},
    "glm4_moe": {"moe_intermediate_size": 64},
}
"""Of models whose matrices become blocks."""


def field(reader: gguf.GGUFReader, name: str) -> Any:
    found = reader.get_field(name)
    assert found is not None
    return found.contents()


def values_of(file: Path) -> dict[str, tuple[str, Float32]]:
    """The type and the values of a file's tensors."""
    return {
        tensor.name: (
            tensor.tensor_type.name,
            np.asarray(gguf.dequantize(np.array(tensor.data), tensor.tensor_type), np.float32),
        )
        for tensor in gguf.GGUFReader(file).tensors
    }


def reference(checkpoint: Checkpoint) -> tuple[str, dict[str, Any], dict[str, Float32]]:
    """What is written for the model that transformers reads from a checkpoint."""
    write_weights(checkpoint.tensors, checkpoint.folder / WEIGHTS_FILE)
    factory: Any = AutoModelForCausalLM
    return converted(factory.from_pretrained(checkpoint.folder, dtype=torch.float32))


@pytest.mark.parametrize("kind", [Q8_0, Q4_0, MXFP4])
def test_blocks_are_those_of_llama_cpp(kind: str) -> None:
    values = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    values[0] = 0
    blocks = quantize(values.ravel(), kind)
    kind_there = gguf.GGMLQuantizationType[kind]
    assert blocks.nbytes == values.size // 32 * gguf.GGML_QUANT_SIZES[kind_there][1]
    ours = gguf.dequantize(blocks.view(np.uint8).reshape(64, -1), kind_there)
    theirs = gguf.dequantize(gguf.quantize(values, kind_there), kind_there)
    assert np.abs(ours - values).mean() <= np.abs(theirs - values).mean() * 1.001
    assert (ours == theirs).mean() > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_checkpoint_of_each_family(model_type: str, tmp_path: Path) -> None:
    config = gguf_config(model_type, dtype="bfloat16")
    checkpoint = random_checkpoint(config, tmp_path, seed=5, router_skew=1.0)
    model = GgufModel.of_checkpoint(checkpoint)
    write(model, tmp_path / "model.gguf")
    architecture, metadata, wanted = reference(checkpoint)
    assert (model.architecture, model.metadata) == (architecture, metadata)
    found = values_of(tmp_path / "model.gguf")
    assert found.keys() == wanted.keys()
    for name, (kind, values) in found.items():
        assert kind in (F32, BF16)
        np.testing.assert_array_equal(values.ravel(), wanted[name].ravel(), err_msg=name)


@pytest.mark.parametrize("matrices", [Q8_0, Q4_0])
@pytest.mark.parametrize("model_type", SIZES)
def test_matrices_become_blocks(model_type: str, matrices: str, tmp_path: Path) -> None:
    config = gguf_config(model_type, dtype="bfloat16", **SIZES[model_type])
    checkpoint = random_checkpoint(config, tmp_path)
    model = GgufModel.of_checkpoint(checkpoint, matrices)
    for tensor in model.tensors:
        assert sum(chunk.nbytes for chunk in tensor.chunks()) == tensor.nbytes, tensor.name
    write(model, tmp_path / "model.gguf")
    wanted = reference(checkpoint)[2]
    experts = MXFP4 if model_type == "gpt_oss" else matrices
    for name, (kind, values) in values_of(tmp_path / "model.gguf").items():
        is_expert = name.endswith("_exps.weight")
        if is_expert or "ffn_up_shexp.weight" in name:
            assert kind == (experts if is_expert else matrices), name
        step = {F32: 0.0, Q8_0: 1 / 100, Q4_0: 1 / 7, MXFP4: 1 / 3}[kind]
        largest = np.abs(wanted[name]).max()
        assert np.abs(values.ravel() - wanted[name].ravel()).max() <= step * largest, name


def test_the_command_writes_the_weights_of_a_random_partition(tmp_path: Path) -> None:
    config = gguf_config("qwen3_moe", dtype="bfloat16", **SIZES["qwen3_moe"])
    checkpoint = random_checkpoint(config, tmp_path, seed=3, router_skew=1.0)
    arguments = ["--config", tmp_path / "config.json", "--seed", 3, "--router-skew", 1]
    arguments += ["--out", tmp_path / "model.gguf"]
    result = CliRunner().invoke(main, [str(each) for each in arguments])
    assert result.exit_code == 0, result.output
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    assert field(reader, "qwen3moe.expert_count") == 4
    assert (
        len(field(reader, "tokenizer.ggml.tokens"))
        == json.loads((tmp_path / "config.json").read_text())["vocab_size"]
    )
    _, router = values_of(tmp_path / "model.gguf")["blk.2.ffn_gate_inp.weight"]
    assert (router == reference(checkpoint)[2]["blk.2.ffn_gate_inp.weight"]).all()


def test_an_unknown_family_is_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, {"model_type": "jamba"}, {})
    with pytest.raises(UnsupportedModel, match="'jamba' is not written for"):
        GgufModel.of_checkpoint(checkpoint)
