"""Reads a partition's dense part as the checkpoint's tensors."""

from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from control_plane.partition.dense import PACKED, packed_matrices
from functions.kernels.packed_expert import ExpertShape, unpack_expert
from functions.kernels.packed_matrix import LinearShape, unpack_matrix


def dense_weights(path: Path, dtype: str) -> dict[str, torch.Tensor]:
    """The tensors by the checkpoint's names; packed matrices in float32. `dtype` is the manifest's."""
    with safe_open(path, "pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        matrices = packed_matrices(file.metadata(), dtype)
    weights = {}
    for name, tensor in stored.items():
        if not name.endswith(PACKED):
            weights[name] = tensor
            continue
        module, packed = name.removesuffix(PACKED), tensor.numpy()
        if whole := matrices.get(f"{module}.weight"):
            outputs, inputs = whole.shape
            unpacked = {"": unpack_matrix(LinearShape(outputs, inputs, whole.dtype), packed)}
        else:
            gate, down = (matrices[f"{module}.{part}_proj.weight"] for part in ("gate", "down"))
            hidden_size, intermediate_size = down.shape
            shape = ExpertShape(hidden_size, intermediate_size, gate.dtype, down.dtype)
            parts = ("gate_proj.", "up_proj.", "down_proj.")
            unpacked = dict(zip(parts, unpack_expert(shape, packed), strict=True))
        for part, matrix in unpacked.items():
            weights[f"{module}.{part}weight"] = torch.from_numpy(np.ascontiguousarray(matrix))
    return weights
