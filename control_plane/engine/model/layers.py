"""Modules that take the place of a model's own: packed linear layers, norms and embeddings.

Modules that compute with packed weights, in the place of a model's own.

Their weights are a partition's bytes as they lie in the file, and activations pass without a copy.

The models' normalisation in one call of a kernel, where torch takes seven.

Token embeddings that stay on disk: a step reads the rows of its tokens, and no others take memory.
"""

import json
import os
import struct
import weakref
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from control_plane.engine.kernels import DenseKernel, LinearLayer, load_dense_kernel
from control_plane.engine.model.tensors import to_numpy, to_torch
from control_plane.errors import EngineError, PartitionError
from functions.kernels import MAX_THREADS, ExpertShape, GatedFFNKernel, LinearShape, load_kernel


class PackedLinear(nn.Module):
    """A linear layer; takes and gives [..., K] and [..., N] in float32 or bfloat16."""

    def __init__(self, linear: nn.Linear, kernel: DenseKernel) -> None:
        super().__init__()
        self.kernel = kernel
        self.threads = _threads()
        self._shape = LinearShape(linear.out_features, linear.in_features, "int8")
        self.packed = _packed_parameter(self._shape.nbytes)
        self.bias = linear.bias

    def sources(self) -> dict[str, tuple[int, ...]]:
        """The weights that are packed, by their names in the module's own place, and their shapes."""
        return {"weight": (self._shape.outputs, self._shape.inputs)}

    @cached_property
    def layer(self) -> LinearLayer:
        """As the kernel takes it, once the weights are there."""
        bias = None if self.bias is None else self.bias.detach().float().numpy()
        return LinearLayer(self._shape, self.packed.numpy(), bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (out,) = self.kernel.linear([self.layer], _as_rows(x), threads=self.threads)
        return _as_tensor(out, x)


def apply_all(modules: Sequence[nn.Module], x: torch.Tensor) -> list[torch.Tensor]:
    """Each module's output for x [..., K]; packed ones are computed in one call."""
    packed = [module for module in modules if isinstance(module, PackedLinear)]
    if len(packed) < len(modules):
        return [module(x) for module in modules]
    first = packed[0]
    outs = first.kernel.linear([module.layer for module in packed], _as_rows(x), threads=first.threads)
    return [_as_tensor(out, x) for out in outs]


class PackedGatedFFN(nn.Module):
    """down(silu(gate(x)) * up(x)); takes and gives [..., H] in float32 or bfloat16."""

    def __init__(self, module: nn.Module, kernel: GatedFFNKernel) -> None:
        super().__init__()
        self._kernel = kernel
        self._threads = _threads()
        down: Any = module.down_proj
        self._shape = ExpertShape(down.out_features, down.in_features, "int8")
        self.packed = _packed_parameter(self._shape.nbytes)

    def sources(self) -> dict[str, tuple[int, ...]]:
        """Likewise."""
        inward = self._shape.intermediate_size, self._shape.hidden_size
        return {"gate_proj.weight": inward, "up_proj.weight": inward, "down_proj.weight": inward[::-1]}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = _as_rows(x)
        index, weight = np.zeros((len(rows), 1), np.int16), np.ones((len(rows), 1), np.float32)
        offsets = np.zeros(1, np.int64)
        packed = self.packed.numpy()
        out = self._kernel.gated_ffn(packed, offsets, self._shape, rows, index, weight, threads=self._threads)
        return _as_tensor(out, x)


def replace_packed(model: nn.Module, modules: Iterable[str]) -> None:
    """Put our modules in the place of those of these names, before anything is loaded; others stay."""
    dense_kernel, ffn_kernel = load_dense_kernel(), load_kernel()
    own = dict(model.named_modules())
    for name in modules:
        parent, _, attribute = name.rpartition(".")
        match own.get(name):
            case nn.Linear() as linear:
                setattr(own[parent], attribute, PackedLinear(linear, dense_kernel))
            case nn.Module() as gated:
                setattr(own[parent], attribute, PackedGatedFFN(gated, ffn_kernel))


def check_packed(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise PartitionError unless the model wants what was packed: weights of these shapes, by name.

    The packed bytes do not tell, and may be as many for another shape.
    """
    wanted = {
        f"{name}.{source}": shape
        for name, module in model.named_modules()
        if isinstance(module, PackedLinear | PackedGatedFFN)
        for source, shape in module.sources().items()
    }
    for name in sorted(wanted.keys() | shapes.keys()):
        if wanted.get(name) != shapes.get(name):
            raise PartitionError(
                f"{name} was packed as {shapes.get(name)}, the model's is {wanted.get(name)}"
            )


def _packed_parameter(nbytes: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(nbytes, dtype=torch.uint8), requires_grad=False)


def _threads() -> int:
    """As many as torch has while the model is loaded; a step may have torch use fewer."""
    return min(torch.get_num_threads(), MAX_THREADS)


def _as_rows(x: torch.Tensor) -> NDArray[Any]:
    """[T, K] as the kernels take it."""
    return to_numpy(x.detach().reshape(-1, x.shape[-1]))


def _as_tensor(rows: NDArray[Any], like: torch.Tensor) -> torch.Tensor:
    """The tensor [..., N] that rows stand for, shaped as `like` but for its last dimension."""
    return to_torch(rows).view(*like.shape[:-1], rows.shape[1])


class KernelRMSNorm(nn.Module):
    """In the place of a model's own RMSNorm, of which all supported families have the same."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self._epsilon = eps
        self._kernel = load_dense_kernel()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[..., H], of the weight's dtype."""
        rows = to_numpy(hidden_states.reshape(-1, hidden_states.shape[-1]))
        out = self._kernel.rms_norm(rows, to_numpy(self.weight.detach()), self._epsilon)
        return to_torch(out).view(hidden_states.shape)


_TORCH_DTYPE = {"F32": torch.float32, "BF16": torch.bfloat16}


class StoredEmbedding(nn.Module):
    """In the place of an nn.Embedding [vocabulary, H] whose weight is in a file and used by nobody else."""

    def __init__(self, path: Path, name: str) -> None:
        """Of the tensor of that name in a safetensors file. Raises OSError."""
        super().__init__()
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            entry = json.loads(file.read(length))[name]
        self._vocabulary, self._size = entry["shape"]
        self._dtype = _TORCH_DTYPE[entry["dtype"]]
        self._offset = 8 + length + entry["data_offsets"][0]
        self._path = path
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    @property
    def nbytes(self) -> int:
        """What it would take in memory."""
        return self._vocabulary * self._size * self._dtype.itemsize

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The rows [..., H] of tokens [...]. Raises `EngineError` when they cannot be read."""
        rows = torch.empty((input_ids.numel(), self._size), dtype=self._dtype)
        places = rows.view(torch.uint8).numpy()
        try:
            for place, token in zip(places, input_ids.ravel().tolist(), strict=True):
                if not 0 <= token < self._vocabulary:
                    raise EngineError(f"token {token} is not in the vocabulary of {self._vocabulary}")
                # The page cache has the rows of common tokens, for as long as there is memory to spare.
                if os.preadv(self._file, [place], self._offset + token * place.nbytes) != place.nbytes:
                    raise EngineError(f"{self._path} ends within the embedding of token {token}")
        except OSError as error:
            raise EngineError(f"cannot read embeddings from {self._path}: {error.strerror}") from error
        return rows.view(*input_ids.shape, self._size)
