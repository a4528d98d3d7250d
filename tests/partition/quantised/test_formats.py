"""Tensors of quantised checkpoints are read as the formats' own formulas say, and kept where a type fits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from control_plane.partition.checkpoint.reader import Checkpoint
from control_plane.partition.checkpoint.tensors.tensor import Tensor
from control_plane.partition.checkpoint.tensors.views import transposed
from functions.kernels.bfloat16 import as_f32
from functions.kernels.packed_matrix import LinearShape, packed_parts, plain_rows, unpack_matrix
from functions.kernels.packed_tiles import Quantised
from tests.support.models.quantised_checkpoints import (
    Float32,
    Stored,
    awq,
    fp8,
    gptq,
    mxfp4,
    named,
    pack_quantised,
    save,
)

Q = "model.layers.0.self_attn.q_proj"
PLAIN = {"model.norm.weight": torch.arange(8).float()}
SHAPE = (40, 96)


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def opened(folder: Path, stored: dict[str, torch.Tensor], **quantisation: Any) -> Checkpoint:
    config = {"model_type": "qwen3_moe", "torch_dtype": "bfloat16", "quantization_config": quantisation}
    return Checkpoint.open(save(folder / "model", {**PLAIN, **stored}, config))


def check_values(tensor: Tensor, wanted: Float32) -> None:
    """Compare the whole, and pieces that begin and end anywhere."""
    assert tensor.shape == wanted.shape
    flat = wanted.reshape(-1)
    assert np.array_equal(as_f32(tensor.read(0, tensor.size)), flat)
    for start, stop in ((0, 1), (5, 7), (flat.size // 3, flat.size // 2), (flat.size - 3, flat.size)):
        assert np.array_equal(as_f32(tensor.read(start, stop - start)), flat[start:stop])
    rows = wanted.reshape(-1, tensor.columns)
    assert np.array_equal(as_f32(tensor.rows(3, 9)), rows[3:12])


def check_lossless(tensor: Tensor, wanted: Float32, dtype: str) -> None:
    """The packed matrix has the values of the checkpoint."""
    assert tensor.stored_type == dtype
    rows = wanted.reshape(-1, tensor.columns)
    shape = LinearShape(*rows.shape, dtype)

    def read(start: int, stop: int) -> Quantised:
        found = tensor.packable_rows(start, stop - start, dtype)
        assert isinstance(found, Quantised)
        return found

    assert np.array_equal(plain_rows(shape, read(2, 12)), rows[2:12])
    packed = np.concatenate(list(packed_parts(shape, read)))
    assert np.array_equal(unpack_matrix(shape, packed), rows)


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16, torch.float8_e8m0fnu])
@pytest.mark.parametrize(
    ("shape", "block"), [((40, 96), (16, 32)), ((40, 100), (16, 32)), ((256, 128), (128, 128))]
)
def test_fp8_blocks(
    shape: tuple[int, int], block: tuple[int, int], scale_dtype: torch.dtype, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    stored, wanted = fp8(torch.randn(shape), block, scale_dtype)
    checkpoint = opened(tmp_path, named(Q, stored), quant_method="fp8", weight_block_size=list(block))
    assert set(checkpoint.tensors) == {f"{Q}.weight", "model.norm.weight"}
    assert "quantization_config" not in checkpoint.config
    check_values(checkpoint.tensors[f"{Q}.weight"], wanted)
    assert checkpoint.tensors[f"{Q}.weight"].stored_type is None


def test_fp8_blocks_of_compressed_tensors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    stored, wanted = fp8(torch.randn(40, 96), (16, 32))
    stored["weight_scale"] = stored.pop("weight_scale_inv")
    groups = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "block_structure": [16, 32]}}}
    checkpoint = opened(tmp_path, named(Q, stored), quant_method="compressed-tensors", config_groups=groups)
    check_values(checkpoint.tensors[f"{Q}.weight"], wanted)


def test_fp8_is_dequantised_like_transformers_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    stored, _ = fp8(torch.randn(256, 384), (128, 128))
    theirs: Any = Fp8Dequantize
    wanted = theirs(None)._dequantize_one(stored["weight"], stored["weight_scale_inv"], torch.float32)
    checkpoint = opened(tmp_path, named(Q, stored), quant_method="fp8", weight_block_size=[128, 128])
    check_values(checkpoint.tensors[f"{Q}.weight"], wanted.numpy())


def test_all_codes_of_fp8(tmp_path: Path) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).reshape(1, 256)
    stored = {f"{Q}.weight": codes, f"{Q}.weight_scale": torch.tensor(1.0)}
    tensor = opened(tmp_path, stored, quant_method="fp8").tensors[f"{Q}.weight"]
    np.testing.assert_array_equal(tensor.read(0, 256), codes.float().numpy()[0])


@pytest.mark.parametrize(("scale", "size"), [((), ()), ((1,), ()), ((40, 1), (40, 1))])
def test_fp8_with_a_scale_of_the_matrix_or_of_each_row(
    scale: tuple[int, ...], size: tuple[int, ...], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    codes, scales = torch.randn(SHAPE).to(torch.float8_e4m3fn), torch.rand(scale)
    stored = {f"{Q}.weight": codes, f"{Q}.weight_scale": scales, f"{Q}.input_scale": torch.tensor(1.0)}
    for method in ("fp8", "compressed-tensors"):
        checkpoint = opened(tmp_path / method, stored, quant_method=method)
        check_values(checkpoint.tensors[f"{Q}.weight"], (codes.float() * scales.reshape(size)).numpy())


def test_fused_experts_in_fp8(tmp_path: Path) -> None:
    torch.manual_seed(0)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    each = [fp8(torch.randn(64, 32), (16, 16)) for _ in range(3)]
    stored = {
        name: torch.stack([stored["weight"].view(torch.uint8) for stored, _ in each]).view(
            torch.float8_e4m3fn
        ),
        f"{name}_scale_inv": torch.stack([stored["weight_scale_inv"] for stored, _ in each]),
    }
    checkpoint = opened(tmp_path, stored, quant_method="fp8", weight_block_size=[16, 16])
    check_values(checkpoint.tensors[name], np.stack([values for _, values in each]))


def test_mxfp4_of_gpt_oss(random: np.random.Generator, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.experts.gate_up_proj"
    stored, wanted = mxfp4((3, 24, 64), random)
    checkpoint = opened(tmp_path, named(name, stored, "_"), quant_method="mxfp4")
    tensor = checkpoint.tensors[name]
    theirs: Any = convert_moe_packed_tensors(stored["blocks"], stored["scales"], dtype=torch.float32)
    assert np.array_equal(theirs.numpy(), wanted.swapaxes(1, 2))
    check_values(tensor, np.ascontiguousarray(wanted.swapaxes(1, 2)))
    check_values(transposed(tensor), wanted)
    check_lossless(transposed(tensor), wanted, "mxfp4")


@pytest.mark.parametrize("exponent", [0, 1, 254])
def test_extreme_scales_of_mxfp4(exponent: int, tmp_path: Path) -> None:
    codes = torch.full((1, 1, 1, 16), 0x11, dtype=torch.uint8)
    stored = {"w_blocks": codes, "w_scales": torch.full((1, 1, 1), exponent, dtype=torch.uint8)}
    tensor = transposed(opened(tmp_path, stored, quant_method="mxfp4").tensors["w"])
    wanted = np.full((1, 32), np.ldexp(np.float32(0.5), exponent - 127), np.float32)
    rows = tensor.read_quantised(0, 1)
    assert np.array_equal(tensor.rows(0, 1), wanted)
    assert rows is not None
    assert np.array_equal(plain_rows(LinearShape(1, 32, "mxfp4"), rows), wanted)


def test_fp4_experts_beside_fp8(random: np.random.Generator, tmp_path: Path) -> None:
    """As in DeepSeek-V4: two codes in an int8, exponents as scales."""
    stored, wanted = mxfp4((12, 64), random)
    tensors = {
        f"{Q}.weight": stored["blocks"].reshape(12, 32).view(torch.int8),
        f"{Q}.scale": stored["scales"].view(torch.float8_e8m0fnu),
    }
    tensor = opened(tmp_path, tensors, quant_method="fp8").tensors[f"{Q}.weight"]
    check_values(tensor, wanted)
    check_lossless(tensor, wanted, "mxfp4")


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [32, 96, 16])
def test_pack_quantized(
    bits: int, symmetric: bool, group_size: int, random: np.random.Generator, tmp_path: Path
) -> None:
    stored, wanted = pack_quantised(SHAPE, random, bits=bits, group_size=group_size, symmetric=symmetric)
    tensor = opened(tmp_path, named(Q, stored), quant_method="compressed-tensors").tensors[f"{Q}.weight"]
    check_values(tensor, wanted)
    if symmetric and group_size != 16:
        check_lossless(tensor, wanted, {4: "int4", 8: "int8"}[bits])
    else:
        assert tensor.read_quantised(0, 4) is None


def test_scales_that_float16_does_not_hold(random: np.random.Generator, tmp_path: Path) -> None:
    stored, _ = pack_quantised(SHAPE, random)
    stored["weight_scale"][3, 0] = 1e-7
    tensor = opened(tmp_path, named(Q, stored), quant_method="compressed-tensors").tensors[f"{Q}.weight"]
    assert tensor.read_quantised(0, 3) is not None
    assert tensor.read_quantised(0, 4) is None


def test_int8_of_compressed_tensors(random: np.random.Generator, tmp_path: Path) -> None:
    codes = torch.from_numpy(random.integers(-128, 128, SHAPE).astype(np.int8))
    scales = torch.rand(40, 1, dtype=torch.bfloat16)
    stored = {f"{Q}.weight": codes, f"{Q}.weight_scale": scales}
    tensor = opened(tmp_path, stored, quant_method="compressed-tensors").tensors[f"{Q}.weight"]
    wanted = (codes.float() * scales.float()).numpy()
    check_values(tensor, wanted)
    check_lossless(tensor, wanted, "int8")


def test_nvfp4_of_compressed_tensors(random: np.random.Generator, tmp_path: Path) -> None:
    stored, wanted = mxfp4(SHAPE, random)
    scales = torch.from_numpy(random.random((40, 6)).astype(np.float32)).to(torch.float8_e4m3fn)
    whole = torch.tensor([37.0])
    tensors = {
        "weight_packed": stored["blocks"].reshape(40, 48),
        "weight_scale": scales,
        "weight_global_scale": whole,
    }
    unscaled = wanted.reshape(40, 3, 32) / np.ldexp(1, stored["scales"].numpy().astype(int) - 127)[:, :, None]
    by_value = np.repeat((scales.float() / whole).numpy(), 16, axis=1)
    tensor = opened(tmp_path, named(Q, tensors), quant_method="compressed-tensors").tensors[f"{Q}.weight"]
    check_values(tensor, (unscaled.reshape(SHAPE) * by_value).astype(np.float32))
    assert tensor.stored_type is None


@pytest.mark.parametrize("group_size", [32, 96])
def test_awq(group_size: int, random: np.random.Generator, tmp_path: Path) -> None:
    stored, wanted = awq(SHAPE, random, group_size)
    tensor = opened(tmp_path, named(Q, stored), quant_method="awq", bits=4).tensors[f"{Q}.weight"]
    check_values(tensor, wanted)
    assert tensor.stored_type == "int4_min"
    assert tensor.read_quantised(0, 4) is None


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("version", [1, 2])
def test_gptq(
    bits: int, symmetric: bool, act_order: bool, version: int, random: np.random.Generator, tmp_path: Path
) -> None:
    stored, wanted = gptq(SHAPE, random, bits=bits, symmetric=symmetric, act_order=act_order, version=version)
    form = {"checkpoint_format": "gptq" if version == 1 else "gptq_v2", "bits": bits, "sym": symmetric}
    tensor = opened(tmp_path, named(Q, stored), quant_method="gptq", **form).tensors[f"{Q}.weight"]
    check_values(tensor, wanted)
    if symmetric and not act_order:
        check_lossless(tensor, wanted, {4: "int4", 8: "int8"}[bits])
    else:
        assert tensor.read_quantised(0, 4) is None


def test_a_module_of_gptq_with_other_bits(random: np.random.Generator, tmp_path: Path) -> None:
    stored, wanted = gptq(SHAPE, random, bits=8)
    tensor = opened(tmp_path, named(Q, stored), quant_method="gptq", bits=4).tensors[f"{Q}.weight"]
    check_values(tensor, wanted)


def test_zeros_are_checked_where_config_json_says_symmetric(
    random: np.random.Generator, tmp_path: Path
) -> None:
    stored, wanted = gptq(SHAPE, random, symmetric=False)
    tensor = opened(tmp_path, named(Q, stored), quant_method="gptq", bits=4, sym=True).tensors[f"{Q}.weight"]
    check_values(tensor, wanted)
    assert tensor.read_quantised(0, 40) is None


def test_modules_that_are_not_quantised_stay(random: np.random.Generator, tmp_path: Path) -> None:
    stored: Stored = gptq(SHAPE, random)
    other = {"lm_head.weight": torch.ones(4, 4, dtype=torch.bfloat16), f"{Q}.bias": torch.ones(40)}
    checkpoint = opened(tmp_path, {**named(Q, stored[0]), **other}, quant_method="gptq", bits=4)
    assert set(checkpoint.tensors) == {"model.norm.weight", "lm_head.weight", f"{Q}.bias", f"{Q}.weight"}
    assert checkpoint.tensors["lm_head.weight"].dtype == "BF16"
