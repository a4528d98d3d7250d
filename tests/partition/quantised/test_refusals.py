"""Quantised checkpoints that cannot be read, or do not fit together, are refused with one error."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from control_plane.errors import PartitionError, UnsupportedModel
from control_plane.partition.checkpoint.reader import Checkpoint
from tests.support.models.quantised_checkpoints import awq, fp8, gptq, mxfp4, named, pack_quantised, save

Q = "model.layers.0.self_attn.q_proj"
Edit = Callable[[dict[str, torch.Tensor]], object]


def refused(folder: Path, stored: dict[str, torch.Tensor], quantisation: Any, kind: type[Exception]) -> str:
    config = {"model_type": "qwen3_moe", "quantization_config": quantisation}
    with pytest.raises(kind) as caught:
        Checkpoint.open(save(folder / "model", stored, config))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


@pytest.mark.parametrize(
    ("quantisation", "problem"),
    [
        (
            {"quant_method": "bitsandbytes"},
            "quant_method 'bitsandbytes' are not supported, only of fp8, mxfp4,",
        ),
        ({"quant_method": "x" * 10**5}, "are not supported"),
        ({"quant_method": "awq", "version": "gemv"}, "only those of version gemm"),
        ({"quant_method": "awq", "bits": 3}, "only those of version gemm"),
        ({"quant_method": "gptq", "bits": 3}, "only the formats gptq and gptq_v2 with 4 or 8 bits"),
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "only the formats gptq and gptq_v2"),
    ],
)
def test_unknown_formats(quantisation: Any, problem: str, tmp_path: Path) -> None:
    stored = named(Q, awq((40, 96), np.random.default_rng(0))[0])
    assert problem in refused(tmp_path, stored, quantisation, UnsupportedModel)


@pytest.mark.parametrize(
    "quantisation", [{"bits": 4}, {"quant_method": 3}, [1], "fp8", {"quant_method": "gptq", "bits": "4"}]
)
def test_malformed_configs(quantisation: Any, tmp_path: Path) -> None:
    stored = {"a.weight": torch.ones(2, 2)}
    assert "config.json: quantization_config" in refused(tmp_path, stored, quantisation, PartitionError)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64, torch.float8_e4m3fn])
def test_numbers_without_a_format(dtype: torch.dtype, tmp_path: Path) -> None:
    message = refused(tmp_path, {"a.weight": torch.zeros(4, 4).to(dtype)}, None, UnsupportedModel)
    assert "a.weight has dtype" in message
    assert "only F32, F16 and BF16 can be split" in message


def cut(name: str) -> Edit:
    return lambda stored: stored.update({name: stored[name][:-1]})


def without(name: str) -> Edit:
    return lambda stored: stored.pop(name)


def with_dtype(name: str, dtype: torch.dtype) -> Edit:
    return lambda stored: stored.update({name: stored[name].to(dtype)})


def replaced(name: str, value: torch.Tensor) -> Edit:
    return lambda stored: stored.update({name: value})


@pytest.mark.parametrize(
    ("method", "edit", "problem"),
    [
        ("fp8", without("weight_scale_inv"), "has no model.layers.0.self_attn.q_proj.weight_scale_inv"),
        (
            "fp8",
            replaced("weight_scale_inv", torch.rand(7, 3)),
            "is [7, 3], not a grid of scales for [40, 96]",
        ),
        ("fp8", with_dtype("weight_scale_inv", torch.int64), "weight_scale_inv has dtype I64"),
        ("mxfp4", without("scales"), "has no"),
        ("mxfp4", cut("scales"), "not the scales of groups of 32"),
        ("mxfp4", cut("blocks"), "not the scales of groups of 32"),
        ("compressed-tensors", without("weight_shape"), "has no"),
        ("compressed-tensors", cut("weight_packed"), "not [40, 96] codes of 4 or 8 bits"),
        ("compressed-tensors", cut("weight_scale"), "not the scales of 40 rows"),
        ("compressed-tensors", replaced("weight_shape", torch.tensor([-40, 96])), "codes of 4 or 8 bits"),
        ("compressed-tensors", replaced("weight_shape", torch.tensor([40, 1 << 60])), "codes of 4 or 8 bits"),
        ("compressed-tensors", cut("weight_zero_point"), "weight_zero_point is"),
        ("awq", without("qzeros"), "has no"),
        ("awq", cut("scales"), "qzeros is"),
        ("awq", cut("qzeros"), "qzeros is"),
        ("awq", with_dtype("qweight", torch.int64), "qweight has dtype I64, not I32"),
        ("gptq", without("scales"), "has no"),
        ("gptq", cut("g_idx"), "not"),
        ("gptq", replaced("g_idx", torch.zeros(7, dtype=torch.int32)), "not 7 inputs of 4 or 8 bits"),
        ("gptq", cut("scales"), "not"),
    ],
)
def test_tensors_that_do_not_fit(method: str, edit: Edit, problem: str, tmp_path: Path) -> None:
    random, shape = np.random.default_rng(0), (40, 96)
    stored = {
        "fp8": lambda: fp8(torch.randn(shape), (16, 32))[0],
        "mxfp4": lambda: mxfp4((2, 6, 64), random)[0],
        "compressed-tensors": lambda: pack_quantised(shape, random, symmetric=False)[0],
        "awq": lambda: awq(shape, random)[0],
        "gptq": lambda: gptq(shape, random)[0],
    }[method]()
    edit(stored)
    quantisation = {"quant_method": method, "weight_block_size": [16, 32], "bits": 4}
    message = refused(
        tmp_path, named(Q, stored, "_" if method == "mxfp4" else "."), quantisation, PartitionError
    )
    assert problem in message


def test_groups_that_there_are_not(tmp_path: Path) -> None:
    stored, _ = gptq((40, 96), np.random.default_rng(0))
    stored["g_idx"][7] = 99
    quantisation = {"quant_method": "gptq", "bits": 4}
    config = {"model_type": "qwen3_moe", "quantization_config": quantisation}
    tensor = Checkpoint.open(save(tmp_path / "model", named(Q, stored), config)).tensors[f"{Q}.weight"]
    with pytest.raises(PartitionError, match="has groups that are not from 0 to 2"):
        tensor.read(0, 1)


def test_a_matrix_that_is_there_twice(tmp_path: Path) -> None:
    stored = named(Q, gptq((40, 96), np.random.default_rng(0))[0]) | {f"{Q}.weight": torch.ones(40, 96)}
    message = refused(tmp_path, stored, {"quant_method": "gptq"}, PartitionError)
    assert message.endswith("is there both quantised and not")


@pytest.mark.parametrize("text", [True, False])
def test_a_nested_config(text: bool, tmp_path: Path) -> None:
    stored, _ = fp8(torch.randn(16, 16), (16, 16))
    quantisation = {"quantization_config": {"quant_method": "fp8"}}
    config = {"text_config": quantisation} if text else {"text_config": {}, **quantisation}
    checkpoint = Checkpoint.open(save(tmp_path / "model", named(Q, stored), config))
    assert checkpoint.config == {"text_config": {}}
    assert checkpoint.tensors[f"{Q}.weight"].dtype == "BF16"
