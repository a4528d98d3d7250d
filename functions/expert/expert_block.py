"""The expert block that a function serves: mapped weights, and the answer to an invocation."""

import json
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from functions.expert.kernels import ExpertShape, Kernel
from functions.expert.residency import Residency
from functions.expert.wire import Invocation

MAX_THREADS = 64
"""As many as a kernel takes."""

_ACTIVATION_DTYPE: dict[str, np.dtype] = {"f32": np.dtype("<f4"), "bf16": np.dtype("<u2")}


class BlockError(Exception):
    """The partition does not hold this function's block, or not as its manifest says."""


class InvocationRefused(Exception):
    """An invocation that this block cannot answer, with the contract's status and code."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True)
class ExpertBlock:
    """One function's experts. Safe to use from several threads at once."""

    model: str
    """The fingerprint of the partition's manifest."""
    dtype: np.dtype
    """Of the activations: float32, or uint16 for the bits of bf16."""
    shape: ExpertShape
    offsets: Mapping[int, np.ndarray]
    """For each layer, the byte offset of each of its experts in the block, -1 for other blocks' experts."""
    top_k: int
    """The most experts that a row can have."""
    residency: Residency
    kernel: Kernel
    threads: int

    @classmethod
    def open(cls, partition: Path, function: str, kernel: Kernel, threads: int | None) -> "ExpertBlock":
        """Map the block of `function`; raises `BlockError`.

        `threads` None is this function's share of the cores that the process may use.
        """
        try:
            manifest = json.loads((partition / "manifest.json").read_bytes())
            entry = next((block for block in manifest["blocks"] if block["function"] == function), None)
            if entry is None:
                raise BlockError(f"{partition / 'manifest.json'} has no function {function!r}")
            sizes = manifest["hidden_size"], manifest["intermediate_size"]
            offsets = _offsets(entry, manifest["num_experts"], manifest["expert_nbytes"])
            mapped = _map(partition / entry["file"], entry["nbytes"])
            return cls(
                model=manifest["fingerprint"],
                dtype=_ACTIVATION_DTYPE[manifest["dtype"]],
                shape=ExpertShape(*sizes, manifest["expert_dtype"]),
                offsets=offsets,
                top_k=manifest["num_experts_per_tok"],
                residency=Residency(mapped, manifest["expert_nbytes"]),
                kernel=kernel,
                threads=threads or _share_of_cores(offsets),
            )
        except (AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError) as error:
            problem = f"{type(error).__name__}: {error}"
            raise BlockError(f"cannot read the partition in {partition}: {problem}") from error

    @property
    def num_experts(self) -> int:
        """How many experts this block has, over all its layers."""
        return sum(int((offsets >= 0).sum()) for offsets in self.offsets.values())

    def run(self, invocation: Invocation) -> tuple[np.ndarray, int]:
        """The weighted sum [T, H] over this block's experts, and how many of them were cold.

        Raises `InvocationRefused`.
        """
        offsets = self._offsets_for(invocation)
        experts = np.unique(invocation.expert_index)
        experts = experts[experts >= 0]
        absent = experts[(experts >= len(offsets)) | (offsets[np.minimum(experts, len(offsets) - 1)] < 0)]
        if absent.size:
            message = f"experts {absent.tolist()} of layer {invocation.layer} are not in this block"
            raise InvocationRefused(404, "unknown_expert", message)
        cold = self.residency.ensure(offsets[experts].tolist())
        output = self.kernel(
            np.frombuffer(self.residency.mapped, np.uint8),
            offsets,
            self.shape,
            invocation.hidden_states,
            invocation.expert_index,
            invocation.expert_weight,
            threads=self.threads,
        )
        return output, cold

    def _offsets_for(self, invocation: Invocation) -> np.ndarray:
        if invocation.model != self.model:
            message = f"this block is of model {self.model}, not {invocation.model!r}"
            raise InvocationRefused(409, "wrong_model", message)
        offsets = self.offsets.get(invocation.layer)
        if offsets is None:
            message = f"this block has layers {sorted(self.offsets)}, not {invocation.layer}"
            raise InvocationRefused(400, "wrong_layer", message)
        hidden_states = invocation.hidden_states
        if hidden_states.dtype != self.dtype:
            raise InvocationRefused(400, "wrong_dtype", f"hidden_states is not {self.dtype_name}")
        if hidden_states.shape[1] != self.shape.hidden_size:
            shape = list(hidden_states.shape)
            message = f"hidden_states is {shape}, its rows must have {self.shape.hidden_size} values"
            raise InvocationRefused(400, "wrong_shape", message)
        if invocation.expert_index.shape[1] > self.top_k:
            # The kernel works on each of them: without this, a small body could ask for any amount of memory.
            message = f"a row has {self.top_k} experts at most, not {invocation.expert_index.shape[1]}"
            raise InvocationRefused(400, "wrong_shape", message)
        return offsets

    @property
    def dtype_name(self) -> str:
        """The activations' dtype as the manifest names it."""
        return next(name for name, dtype in _ACTIVATION_DTYPE.items() if dtype == self.dtype)


def _map(path: Path, nbytes: int) -> mmap.mmap:
    """Map a block file, which has to be as long as its manifest says."""
    size = path.stat().st_size
    if size != nbytes:
        raise BlockError(f"{path} has {size} bytes, its manifest says {nbytes}")
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)


def _share_of_cores(offsets: Mapping[int, np.ndarray]) -> int:
    """A layer's functions are called at the same time: the cores are divided among them."""
    of_layer = next(iter(offsets.values()))
    functions = -(-len(of_layer) // max(1, int((of_layer >= 0).sum())))
    return max(1, min(len(os.sched_getaffinity(0)), MAX_THREADS) // functions)


def _offsets(entry: dict, num_experts: int, expert_nbytes: int) -> dict[int, np.ndarray]:
    """A block's experts lie one after the other, in the order in which the manifest lists them."""
    offset = entry["offset"]
    table = {}
    for layer, experts in entry["experts"].items():
        offsets = np.full(num_experts, -1, np.int64)
        offsets[experts] = offset + np.arange(len(experts)) * expert_nbytes
        offset += len(experts) * expert_nbytes
        table[int(layer)] = offsets
    return table
