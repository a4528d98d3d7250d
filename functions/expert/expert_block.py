"""The expert block that a function serves, and the answer to an invocation."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from functions.contract.wire import Invocation
from functions.expert.block_file import BlockFile, BlockReadError
from functions.expert.residency import Residency
from functions.host.memory import machine_memory, memory_limit
from functions.kernels import ExpertShape, GatedFFNKernel

MAX_THREADS = 64
"""As many as a kernel takes."""

_CONTROL_PLANE_NBYTES = 512 << 20
_FUNCTION_NBYTES = 32 << 20
"""What the processes take beside weights."""

_NOTHING = np.empty(0, np.int64)
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
    positions: Mapping[int, np.ndarray]
    """For each layer, the position of each of its experts in the block, -1 for other blocks' experts."""
    top_k: int
    """The most experts that a row can have."""
    residency: Residency
    kernel: GatedFFNKernel
    threads: int

    @classmethod
    def open(
        cls,
        partition: Path,
        function: str,
        kernel: GatedFFNKernel,
        threads: int | None,
        limit: int | None = None,
    ) -> "ExpertBlock":
        """Open the block of `function`; raises `BlockError`.

        `threads` None is this function's share of the cores that the process may use, `limit` None (of bytes
        of weights to be held) its share of the memory.
        """
        try:
            manifest = json.loads((partition / "manifest.json").read_bytes())
            entry = next((block for block in manifest["blocks"] if block["function"] == function), None)
            if entry is None:
                raise BlockError(f"{partition / 'manifest.json'} has no function {function!r}")
            positions = _positions(entry, manifest["num_experts"])
            layer_of = np.repeat(list(positions), [len(experts) for experts in entry["experts"].values()])
            limit = _share_of_memory(manifest, entry) if limit is None else limit
            file = _open(partition / entry["file"], entry["nbytes"])
            return cls(
                model=manifest["fingerprint"],
                dtype=_ACTIVATION_DTYPE[manifest["dtype"]],
                shape=ExpertShape(
                    manifest["hidden_size"], manifest["intermediate_size"], manifest["expert_dtype"]
                ),
                positions=positions,
                top_k=manifest["num_experts_per_tok"],
                residency=Residency(file, entry["offset"], layer_of, manifest["expert_nbytes"], limit),
                kernel=kernel,
                threads=threads or _share_of_cores(positions),
            )
        except (AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError) as error:
            problem = f"{type(error).__name__}: {error}"
            raise BlockError(f"cannot read the partition in {partition}: {problem}") from error

    @property
    def num_experts(self) -> int:
        """How many experts this block has, over all its layers."""
        return sum(int((positions >= 0).sum()) for positions in self.positions.values())

    @property
    def fits_beside_client(self) -> bool:
        """Whether there is a core for each function of a layer, beside that of whoever calls them."""
        return _functions_of_a_layer(self.positions) < len(os.sched_getaffinity(0))

    def run(self, invocation: Invocation) -> tuple[np.ndarray, int]:
        """The weighted sum [T, H] over this block's experts, and how many of them were cold.

        Raises `InvocationRefused`.
        """
        layer_positions = self._positions_for(invocation)
        if invocation.resident_limit is not None:
            self.residency.set_limit(invocation.resident_limit)
        expected = list(self._expected(invocation))
        # An index of -1, for another function's expert, is counted first, and left out.
        counts = np.bincount(invocation.expert_index.ravel().astype(np.int64) + 1)[1:]
        experts = counts.nonzero()[0]
        _refuse_absent(invocation.layer, experts, layer_positions)
        if not experts.size:
            if expected:
                self.residency.expect(expected)
            return np.zeros_like(invocation.hidden_states), 0
        rows_of = counts[experts]
        sums = _Sums(self, invocation, experts)
        try:
            positions = layer_positions[experts].tolist()
            cold = self.residency.call(positions, rows_of, len(invocation.hidden_states), sums.add, expected)
        except BlockReadError as error:
            raise InvocationRefused(500, "unreadable", str(error)) from error
        except TimeoutError as error:
            raise InvocationRefused(503, "busy", str(error)) from error
        return sums.output, cold

    def _expected(self, invocation: Invocation) -> Iterator[int]:
        """The positions of a prefetch; what this block does not have is none of its business."""
        for layer, experts in invocation.prefetch.items():
            positions = self.positions.get(layer, _NOTHING)
            for expert in experts:
                if expert < len(positions) and positions[expert] >= 0:
                    yield int(positions[expert])

    def _positions_for(self, invocation: Invocation) -> np.ndarray:
        if invocation.model != self.model:
            message = f"this block is of model {self.model}, not {invocation.model!r}"
            raise InvocationRefused(409, "wrong_model", message)
        positions = self.positions.get(invocation.layer)
        if positions is None:
            message = f"this block has layers {sorted(self.positions)}, not {invocation.layer}"
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
        return positions

    @property
    def dtype_name(self) -> str:
        """The activations' dtype as the manifest names it."""
        return next(name for name, dtype in _ACTIVATION_DTYPE.items() if dtype == self.dtype)


def _refuse_absent(layer: int, experts: np.ndarray, positions: np.ndarray) -> None:
    """Raise `InvocationRefused` for experts that the block does not have."""
    known = experts[experts < len(positions)]
    if len(known) < len(experts) or (positions[known] < 0).any():
        absent = [int(expert) for expert in experts if expert not in known or positions[expert] < 0]
        message = f"experts {absent} of layer {layer} are not in this block"
        raise InvocationRefused(404, "unknown_expert", message)


class _Sums:
    """The weighted sums of one invocation, over those of its ascending experts that have had their turn."""

    def __init__(self, block: ExpertBlock, invocation: Invocation, experts: np.ndarray) -> None:
        self._block = block
        self._invocation = invocation
        self._experts = experts
        self._done = 0
        self._offsets = np.full(len(block.positions[invocation.layer]), -1, np.int64)
        self.output: Any = None

    def add(self, wave: Sequence[int], is_last: bool) -> None:
        """Run the experts at these positions, which are the next ones."""
        block, invocation = self._block, self._invocation
        experts = self._experts[self._done : self._done + len(wave)]
        self._offsets[experts] = block.residency.offsets(wave)
        self.output = block.kernel.gated_ffn(
            block.residency.weights,
            self._offsets,
            block.shape,
            invocation.hidden_states,
            invocation.expert_index if len(wave) == len(self._experts) else self._only(experts),
            invocation.expert_weight,
            threads=block.threads,
            carry=self.output,
            partial=not is_last,
        )
        self._done += len(wave)

    def _only(self, experts: np.ndarray) -> np.ndarray:
        """The invocation's expert_index without all others."""
        chosen = np.zeros(len(self._offsets) + 1, bool)
        chosen[experts] = True
        index = self._invocation.expert_index
        # An index of -1 finds the last of them, which is never chosen.
        return np.where(chosen[index], index, np.int16(-1))


def _open(path: Path, nbytes: int) -> BlockFile:
    """Open a block file, which has to be as long as its manifest says."""
    file = BlockFile(path)
    if file.nbytes != nbytes:
        file.close()
        raise BlockError(f"{path} has {file.nbytes} bytes, its manifest says {nbytes}")
    return file


def _share_of_cores(positions: Mapping[int, np.ndarray]) -> int:
    """A layer's functions are called at the same time: the cores are divided among them."""
    return max(1, min(len(os.sched_getaffinity(0)), MAX_THREADS) // _functions_of_a_layer(positions))


def _functions_of_a_layer(positions: Mapping[int, np.ndarray]) -> int:
    """How many there are, if all have as many of its experts as this one."""
    of_layer = next(iter(positions.values()))
    return -(-len(of_layer) // max(1, int((of_layer >= 0).sum())))


def _share_of_memory(manifest: Mapping[str, Any], entry: Mapping[str, Any]) -> int:
    """Bytes of weights to be held, when nobody says so: as if the whole model ran on this machine.

    A control group that is smaller than the machine is taken for this function's alone.
    """
    model = sum(block["nbytes"] for block in manifest["blocks"])
    others = manifest["dense"]["nbytes"] + _CONTROL_PLANE_NBYTES + len(manifest["blocks"]) * _FUNCTION_NBYTES
    of_machine = (machine_memory() * 9 // 10 - others) * entry["nbytes"] // model
    of_group = memory_limit().nbytes - _FUNCTION_NBYTES
    return max(0, min(of_machine, of_group, entry["nbytes"] - entry["offset"]))


def _positions(entry: Mapping[str, Any], num_experts: int) -> dict[int, np.ndarray]:
    """A block's experts lie one after the other, in the order in which the manifest lists them."""
    first = 0
    table = {}
    for layer, experts in entry["experts"].items():
        positions = np.full(num_experts, -1, np.int64)
        positions[experts] = first + np.arange(len(experts))
        first += len(experts)
        table[int(layer)] = positions
    return table
