"""Quantised checkpoints, and models in GGUF, answer like the model of their dequantised weights."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from bench.support.gguf.conversion import converted, converted_tensor
from control_plane.partition.manifest import Manifest
from control_plane.partition.partitioner import partition
from functions.kernels.packed_expert import unpack_expert
from tests.support.models.checkpoints import edit_config, save_checkpoint, tiny_model
from tests.support.models.dense_part import dense_weights
from tests.support.models.gguf_files import Stored, plain, quantised, random_blocks, split, write_gguf
from tests.support.models.quantised_checkpoints import fp8, gptq, named
from tests.support.models.tiny_engine import greedy_answers, tokens_of
from tests.support.running import sequence, served

pytestmark = pytest.mark.slow

MAX_TOKENS = 16
PROMPTS = [torch.tensor([[5]]), torch.tensor([[7, 60, 33, 12, 9, 41, 28]])]
NOISE = 0.08
"""The most that rounded activations, in bf16 and in groups of int8, may change the logits."""
STORED_TYPES = {"Q8_0": "int8", "Q4_0": "int4", "Q4_K": "int4_min", "IQ4_NL": "int4_nl", "MXFP4": "mxfp4"}


def quantised_checkpoint(folder: Path, method: str) -> tuple[Path, PreTrainedModel]:
    """A checkpoint of Qwen3-MoE with quantised matrices, and the model of its dequantised weights."""
    config: dict[str, Any] = {
        "hidden_size": 64,
        "moe_intermediate_size": 32,
        "head_dim": 32,
        "initializer_range": 0.2,
    }
    model = tiny_model("qwen3_moe", **config)
    plain_folder = save_checkpoint(model, folder / "plain")
    tensors, random = load_file(plain_folder / "model.safetensors"), np.random.default_rng(0)
    stored, values = {}, {}
    for name, tensor in tensors.items():
        if not name.endswith("proj.weight"):
            stored[name] = values[name] = tensor
            continue
        module = name.removesuffix(".weight")
        height, width = tensor.shape
        parts, found = fp8(tensor, (16, 32)) if method == "fp8" else gptq((height, width), random)
        stored |= named(module, parts)
        values[name] = torch.from_numpy(found)
    save_file(values, plain_folder / "model.safetensors", {"format": "pt"})
    factory: Any = AutoModelForCausalLM
    reference = factory.from_pretrained(plain_folder).float().eval()
    quantised_folder = save_checkpoint(model, folder / method)
    save_file(stored, quantised_folder / "model.safetensors", {"format": "pt"})
    quantisation = {"quant_method": method, "weight_block_size": [16, 32], "bits": 4, "sym": True}
    edit_config(quantised_folder, quantization_config=quantisation, dtype="float32")
    return quantised_folder, reference


def gguf_model(folder: Path, kind: str) -> tuple[Path, PreTrainedModel]:
    """A Qwen2-MoE model in GGUF, all of whose matrices are of a type, and its dequantised weights."""
    config: dict[str, Any] = {"hidden_size": 256, "moe_intermediate_size": 256}
    config["shared_expert_intermediate_size"] = 256
    model = tiny_model("qwen2_moe", initializer_range=0.1, num_experts_per_tok=3, **config)
    random = np.random.default_rng(0)
    architecture, metadata, _ = converted(model)
    tensors: dict[str, Stored] = {}
    for name, parameter in model.state_dict().items():
        is_matrix = parameter.dim() > 1 and not name.endswith("gate.weight")
        stored = matrix(kind, parameter.numpy(), random) if is_matrix else plain(parameter.numpy())
        parameter.copy_(torch.from_numpy(stored.values.copy()))
        for each, data in converted_tensor(name, stored.data, model.config).items():
            tensors[each] = Stored(stored.kind, data)
    return write_gguf(folder / f"tiny-{kind}.gguf", architecture, metadata, tensors), model


def matrix(kind: str, values: np.ndarray[Any, Any], random: np.random.Generator) -> Stored:
    if kind in ("Q8_0", "Q4_0"):
        return quantised(values, kind)
    scales = {"Q4_K": 4e-4, "IQ4_NL": 1.5e-3, "MXFP4": 0.0}
    return random_blocks(kind, values.shape, random, scales[kind])


async def answers(folder: Path) -> tuple[list[torch.Tensor], list[list[int]]]:
    async with served(folder) as serving:
        logits = [await asyncio.to_thread(serving.prompt_logits, prompt) for prompt in PROMPTS]
        streams = [serving.engine.submit([sequence(prompt, MAX_TOKENS)]) for prompt in PROMPTS]
        return logits, [await tokens_of(stream) for stream in streams]


def check_exact(folder: Path, model: PreTrainedModel) -> None:
    logits, tokens = asyncio.run(answers(folder))
    assert tokens == [greedy_answers(model, prompt, MAX_TOKENS)[0] for prompt in PROMPTS]
    for ours, prompt in zip(logits, PROMPTS, strict=True):
        torch.testing.assert_close(ours, model(prompt).logits[0, -1], atol=2e-4, rtol=0)


def relative_error(folder: Path, model: PreTrainedModel) -> float:
    """The root mean square error of the logits, as a share of their own spread."""
    logits, _ = asyncio.run(answers(folder))
    wanted = [model(prompt).logits[0, -1] for prompt in PROMPTS]
    errors: list[float] = [
        ((ours.float() - theirs).square().mean().sqrt() / theirs.std()).item()
        for ours, theirs in zip(logits, wanted, strict=True)
    ]
    return max(errors)


def experts(folder: Path, manifest: Manifest) -> dict[tuple[int, int], list[torch.Tensor]]:
    found = {}
    for block in manifest.blocks:
        data = np.fromfile(folder / block.file, np.uint8)
        for layer, indices in block.experts.items():
            for expert in indices:
                packed = data[block.expert_offset(layer, expert) :][: manifest.expert_nbytes]
                found[layer, expert] = [
                    torch.from_numpy(np.ascontiguousarray(each))
                    for each in unpack_expert(manifest.expert_shape, packed)
                ]
    return found


def check_experts(folder: Path, manifest: Manifest, model: Any) -> None:
    """The partition's experts have the model's weights, bit for bit."""
    found = experts(folder, manifest)
    for layer, module in enumerate(model.model.layers):
        for expert, (gate_up, down) in enumerate(
            zip(module.mlp.experts.gate_up_proj, module.mlp.experts.down_proj, strict=True)
        ):
            gate, up = gate_up.chunk(2)
            for ours, theirs in zip(found[layer, expert], (gate, up, down), strict=True):
                assert torch.equal(ours, theirs.detach())


@pytest.mark.parametrize("method", ["fp8", "gptq"])
def test_quantised_checkpoints_in_f32(method: str, tmp_path: Path) -> None:
    folder, model = quantised_checkpoint(tmp_path, method)
    manifest = partition(folder, tmp_path / "partition", dtype="f32")
    check_experts(tmp_path / "partition", manifest, model)
    check_exact(tmp_path / "partition", model)
    config = json.loads((tmp_path / "partition" / "config.json").read_text())
    assert "quantization_config" not in config


def test_gptq_keeps_its_codes(tmp_path: Path) -> None:
    folder, model = quantised_checkpoint(tmp_path, "gptq")
    manifest = partition(folder, tmp_path / "partition")
    assert (manifest.gate_up_dtype, manifest.down_dtype) == ("int4", "int4")
    assert manifest.dense_dtypes.attention == "int4"
    check_experts(tmp_path / "partition", manifest, model)
    assert relative_error(tmp_path / "partition", model) < NOISE


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K"])
def test_gguf_in_f32(kind: str, tmp_path: Path) -> None:
    file, model = gguf_model(tmp_path, kind)
    manifest = partition(file, tmp_path / "partition", dtype="f32")
    check_experts(tmp_path / "partition", manifest, model)
    check_exact(tmp_path / "partition", model)


@pytest.mark.parametrize(("kind", "dtype"), STORED_TYPES.items())
def test_gguf_keeps_its_codes(kind: str, dtype: str, tmp_path: Path) -> None:
    file, model = gguf_model(tmp_path, kind)
    manifest = partition(file, tmp_path / "partition")
    assert manifest.name == f"tiny-{kind.lower().replace('_', '-')}"
    assert (manifest.gate_up_dtype, manifest.down_dtype) == (dtype, dtype)
    dense = manifest.dense_dtypes
    assert {dense.attention, dense.gate_up, dense.down, dense.head} == {dtype}
    check_experts(tmp_path / "partition", manifest, model)
    weights = dense_weights(tmp_path / "partition" / "dense.safetensors", manifest.dtype)
    for name in ("model.layers.1.self_attn.q_proj.weight", "lm_head.weight"):
        assert torch.equal(weights[name], model.state_dict()[name])
    assert relative_error(tmp_path / "partition", model) < NOISE


def test_a_model_that_is_split_into_files(tmp_path: Path) -> None:
    """Any of its files, and their folder, is the model."""
    file, model = gguf_model(tmp_path, "Q8_0")
    parts = split(file, tmp_path / "parts", 3)
    file.unlink()
    for path in (tmp_path / "parts", parts[0], parts[2]):
        out = tmp_path / f"out-{path.name}"
        manifest = partition(path, out, dtype="f32")
        check_experts(out, manifest, model)
