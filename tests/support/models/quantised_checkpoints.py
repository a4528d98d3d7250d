"""Writes checkpoints as published in quantised forms, by plain loops over what each form's documents say.

Each function returns the stored tensors of a matrix by their names, and its values as float32.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

Float32 = NDArray[np.float32]
Stored = tuple[dict[str, torch.Tensor], Float32]

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The outputs whose codes a number has, from its lowest bits up."""
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def save(folder: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> Path:
    """Write a checkpoint of one file. Returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: each.contiguous() for name, each in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def packed(rows: NDArray[Any], bits: int) -> NDArray[np.int32]:
    """Codes [N, K] of few bits, those of a row from the lowest bits up, as [N, K * bits / 32]."""
    each = 32 // bits
    words = np.zeros((len(rows), -(-rows.shape[1] // each)), np.uint32)
    for column in range(rows.shape[1]):
        words[:, column // each] |= rows[:, column].astype(np.uint32) << np.uint32(bits * (column % each))
    return words.view(np.int32)


def fp8(weight: torch.Tensor, block: tuple[int, int], scale_dtype: torch.dtype = torch.float32) -> Stored:
    """Codes e4m3 of a matrix, and the scale of each block."""
    rows, columns = block
    height, width = weight.shape
    grid = -(-height // rows), -(-width // columns)
    codes = torch.empty(height, width, dtype=torch.float8_e4m3fn)
    scales = torch.empty(grid)
    values = torch.empty(height, width)
    for row in range(grid[0]):
        for column in range(grid[1]):
            place = (slice(row * rows, (row + 1) * rows), slice(column * columns, (column + 1) * columns))
            scale = weight[place].abs().max() / 448
            if scale_dtype == torch.float8_e8m0fnu:
                scale = torch.exp2(torch.ceil(torch.log2(scale)))
            scale = scale.to(scale_dtype).float()
            codes[place] = (weight[place] / scale).to(torch.float8_e4m3fn)
            scales[row, column] = scale
            values[place] = codes[place].float() * scale
    return {"weight": codes, "weight_scale_inv": scales.to(scale_dtype)}, values.numpy()


def mxfp4(shape: Sequence[int], random: np.random.Generator) -> Stored:
    """Random matrices [E, N, K] as gpt-oss stores them: 16 bytes of two values for each group of 32."""
    *leading, columns = shape
    blocks = random.integers(0, 256, (*leading, columns // 32, 16), dtype=np.uint8)
    scales = random.integers(115, 130, (*leading, columns // 32), dtype=np.uint8)
    values = np.empty((*leading, columns // 32, 32), np.float32)
    for place in np.ndindex(blocks.shape):
        for half, code in enumerate((int(blocks[place]) & 15, int(blocks[place]) >> 4)):
            sign = -1.0 if code >= 8 else 1.0
            scale = 2.0 ** (int(scales[place[:-1]]) - 127)
            values[(*place[:-1], 2 * place[-1] + half)] = sign * _E2M1[code % 8] * scale
    stored = {"blocks": torch.from_numpy(blocks), "scales": torch.from_numpy(scales)}
    return stored, values.reshape(*leading, columns)


def pack_quantised(
    shape: tuple[int, int],
    random: np.random.Generator,
    *,
    bits: int = 4,
    group_size: int = 32,
    symmetric: bool = True,
    dtype: torch.dtype = torch.bfloat16,
) -> Stored:
    """A random matrix in compressed-tensors' format pack-quantized."""
    rows, columns = shape
    groups, half = columns // group_size, 1 << (bits - 1)
    codes = random.integers(-half, half, shape)
    scales = torch.from_numpy(random.random((rows, groups)) * 0.01 + 0.001).to(dtype)
    zeros = np.zeros((rows, groups), np.int64) if symmetric else random.integers(-half, half, (rows, groups))
    stored = {
        "weight_packed": torch.from_numpy(packed(codes + half, bits)),
        "weight_scale": scales,
        "weight_shape": torch.tensor(shape),
    }
    if not symmetric:
        stored["weight_zero_point"] = torch.from_numpy(packed((zeros + half).T, bits).T.copy())
    return stored, _grouped(codes, zeros, scales.float().numpy(), np.arange(columns) // group_size)


def awq(shape: tuple[int, int], random: np.random.Generator, group_size: int = 32) -> Stored:
    """A random matrix [N, K] as AWQ stores it."""
    rows, columns = shape
    groups = columns // group_size
    codes, zeros = random.integers(0, 16, shape), random.integers(0, 16, (rows, groups))
    scales = (random.random((rows, groups)) * 0.01 + 0.001).astype(np.float16)

    def interleaved(numbers: NDArray[Any]) -> torch.Tensor:
        order = np.concatenate([np.array(_AWQ_ORDER) + start for start in range(0, rows, 8)])
        return torch.from_numpy(packed(numbers.T[:, order], 4))

    stored = {
        "qweight": interleaved(codes),
        "qzeros": interleaved(zeros),
        "scales": torch.from_numpy(scales.T.copy()),
    }
    return stored, _grouped(codes, zeros, scales.astype(np.float32), np.arange(columns) // group_size)


def gptq(
    shape: tuple[int, int],
    random: np.random.Generator,
    *,
    bits: int = 4,
    group_size: int = 32,
    symmetric: bool = True,
    act_order: bool = False,
    version: int = 1,
) -> Stored:
    """A random matrix [N, K] as GPTQ stores it. With `act_order`, inputs of a group are anywhere."""
    rows, columns = shape
    groups, half = columns // group_size, 1 << (bits - 1)
    codes = random.integers(0, 2 * half, shape)
    zeros = np.full((rows, groups), half) if symmetric else random.integers(0, 2 * half, (rows, groups))
    scales = (random.random((rows, groups)) * 0.01 + 0.001).astype(np.float16)
    order = np.arange(columns) // group_size
    if act_order:
        order = random.permutation(order)
    stored_zeros = (zeros - (1 if version == 1 else 0)) % (2 * half)
    stored = {
        "qweight": torch.from_numpy(packed(codes, bits).T.copy()),
        "qzeros": torch.from_numpy(packed(stored_zeros.T, bits)),
        "scales": torch.from_numpy(scales.T.copy()),
        "g_idx": torch.from_numpy(order.astype(np.int32)),
    }
    return stored, _grouped(codes, zeros, scales.astype(np.float32), order)


def _grouped(codes: NDArray[Any], zeros: NDArray[Any], scales: Float32, order: NDArray[np.int64]) -> Float32:
    values = np.empty(codes.shape, np.float32)
    for row in range(codes.shape[0]):
        for column in range(codes.shape[1]):
            group = order[column]
            values[row, column] = np.float32(codes[row, column] - zeros[row, group]) * scales[row, group]
    return values


def named(module: str, stored: Mapping[str, torch.Tensor], separator: str = ".") -> dict[str, torch.Tensor]:
    """The stored tensors of a module by their whole names."""
    return {f"{module}{separator}{name}": each for name, each in stored.items()}
