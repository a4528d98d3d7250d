"""Modules that replace a model's own linear layers and gated FFNs, and compute with our kernels.

Packed weights are the partition file's bytes, mapped into memory, and activations pass to the kernels without
a copy: NumPy and torch share their memory.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from control_plane.engine.kernels import DenseKernel, LinearLayer, load_dense_kernel
from control_plane.engine.model.transformers_model.tensor_views import to_numpy, to_torch
from control_plane.errors import PartitionError
from control_plane.partition.dense import PackedMatrix
from functions.kernels import MAX_THREADS, ExpertShape, GatedFFNKernel, LinearShape, load_kernel


class PackedLinear(nn.Module):
    """A linear layer with packed weights: [..., K] to [..., N], in float32 or bfloat16."""

    def __init__(self, linear: nn.Linear, dtype: str, kernel: DenseKernel) -> None:
        """`dtype` is the type of the packed weights."""
        super().__init__()
        self.kernel = kernel
        self.threads = _threads()
        self._shape = LinearShape(linear.out_features, linear.in_features, dtype)
        self.packed = _packed_parameter(self._shape.nbytes)
        self.bias = linear.bias

    def sources(self) -> dict[str, PackedMatrix]:
        """The weights that are packed here, by the names that they had in the replaced module."""
        shape = self._shape
        return {"weight": PackedMatrix((shape.outputs, shape.inputs), shape.dtype)}

    @cached_property
    def layer(self) -> LinearLayer:
        """The kernel's view of the weights. Do not use it before they are loaded."""
        bias = None if self.bias is None else self.bias.detach().float().numpy()
        return LinearLayer(self._shape, self.packed.numpy(), bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (out,) = self.kernel.linear([self.layer], _as_rows(x), threads=self.threads)
        return _as_tensor(out, x)


class PackedGatedFFN(nn.Module):
    """down(silu(gate(x)) * up(x)) with packed weights: [..., H] to [..., H], in float32 or bfloat16.

    The kernel is the one that computes experts: here it has one expert, which all rows are routed to.
    """

    def __init__(
        self, module: nn.Module, gate_up_dtype: str, down_dtype: str, kernel: GatedFFNKernel
    ) -> None:
        """The dtypes are the types of the packed weights."""
        super().__init__()
        self._kernel = kernel
        self._threads = _threads()
        down: Any = module.down_proj
        self._shape = ExpertShape(down.out_features, down.in_features, gate_up_dtype, down_dtype)
        self.packed = _packed_parameter(self._shape.nbytes)

    def sources(self) -> dict[str, PackedMatrix]:
        """The weights that are packed here, by the names that they had in the replaced module."""
        shape = self._shape
        inward = PackedMatrix((shape.intermediate_size, shape.hidden_size), shape.gate_up_dtype)
        outward = PackedMatrix((shape.hidden_size, shape.intermediate_size), shape.down_dtype)
        return {"gate_proj.weight": inward, "up_proj.weight": inward, "down_proj.weight": outward}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = _as_rows(x)
        index, weight = np.zeros((len(rows), 1), np.int16), np.ones((len(rows), 1), np.float32)
        offsets = np.zeros(1, np.int64)
        packed = self.packed.numpy()
        out = self._kernel.gated_ffn(packed, offsets, self._shape, rows, index, weight, threads=self._threads)
        return _as_tensor(out, x)


def replace_packed(model: nn.Module, modules: Iterable[str], matrices: Mapping[str, PackedMatrix]) -> None:
    """Put our modules in the place of those of these names, before anything is loaded; others stay.

    `matrices` are the packed weights, by name. A module whose weights are not among them stays, too.
    """
    dense_kernel, ffn_kernel = load_dense_kernel(), load_kernel()
    own = dict(model.named_modules())
    for name in modules:
        parent, _, attribute = name.rpartition(".")
        names = (f"{name}.{part}weight" for part in ("", "gate_proj.", "down_proj."))
        match own.get(name), *map(matrices.get, names):
            case nn.Linear() as linear, PackedMatrix() as weight, _, _:
                setattr(own[parent], attribute, PackedLinear(linear, weight.dtype, dense_kernel))
            case nn.Module() as gated, None, PackedMatrix() as gate, PackedMatrix() as down:
                setattr(own[parent], attribute, PackedGatedFFN(gated, gate.dtype, down.dtype, ffn_kernel))


def check_packed(model: nn.Module, matrices: Mapping[str, PackedMatrix]) -> None:
    """Raise `PartitionError` unless the packed weights have the shapes that the model needs.

    `matrices` are what the partition states, by name. The packed bytes alone do not show a mismatch:
    different shapes can take the same number of bytes.
    """
    wanted = {
        f"{name}.{source}": matrix
        for name, module in model.named_modules()
        if isinstance(module, PackedLinear | PackedGatedFFN)
        for source, matrix in module.sources().items()
    }
    for name in sorted(wanted.keys() | matrices.keys()):
        if wanted.get(name) != matrices.get(name):
            raise PartitionError(
                f"{name} was packed as {_in_words(matrices.get(name))}, the model's is "
                f"{_in_words(wanted.get(name))}"
            )


def _in_words(matrix: PackedMatrix | None) -> str:
    return "nothing" if matrix is None else f"{matrix.dtype} {list(matrix.shape)}"


def _packed_parameter(nbytes: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(nbytes, dtype=torch.uint8), requires_grad=False)


def _threads() -> int:
    """torch's number of threads at the time of loading. Small steps reduce torch's, but not the kernels'."""
    return min(torch.get_num_threads(), MAX_THREADS)


def _as_rows(x: torch.Tensor) -> NDArray[Any]:
    """x [..., K] as a NumPy array [T, K]."""
    return to_numpy(x.detach().reshape(-1, x.shape[-1]))


def _as_tensor(rows: NDArray[Any], like: torch.Tensor) -> torch.Tensor:
    """Rows [T, N] as a tensor [..., N] with the leading dimensions of `like`."""
    return to_torch(rows).view(*like.shape[:-1], rows.shape[1])
