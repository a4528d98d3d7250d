"""The expert block that a function serves, and how it answers an invocation."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from functions.contract.manifest import FunctionManifest, ManifestError
from functions.contract.messages import Invocation
from functions.contract.process import UNKNOWN_EXPERT
from functions.expert.block_file import BlockDamaged, BlockFile, BlockReadError
from functions.expert.residency import Residency, Waves
from functions.host.memory import machine_memory, memory_limit
from functions.kernels import MAX_THREADS, ExpertShape, GatedFFNKernel

_CONTROL_PLANE_NBYTES = 512 << 20
"""Estimated memory of the control plane's process, without weights."""
_FUNCTION_NBYTES = 10 << 20
"""Estimated memory of a function's process that was forked, as all of a machine's are, without weights."""
_CONTAINER_NBYTES = 32 << 20
"""The same of a function that has a container of its own."""

_NO_POSITIONS = np.empty(0, np.int64)
_ACTIVATION_DTYPE: dict[str, np.dtype[Any]] = {"f32": np.dtype("<f4"), "bf16": np.dtype("<u2")}


class BlockError(Exception):
    """The partition does not hold this function's block, or the block is not what the manifest says."""


class InvocationRefused(Exception):
    """An invocation that this block cannot answer, with the contract's status and code."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True)
class ExpertBlock:
    """One function's experts. Safe to use from several threads at once."""

    partition: Path
    manifest: FunctionManifest
    on_replaced: Callable[[], None]
    """Called when the folder has come to hold another partition, which this block cannot read."""
    dtype: np.dtype[Any]
    """The activations' dtype: float32, or uint16 for the bits of bf16."""
    shape: ExpertShape
    positions: Mapping[int, NDArray[np.int64]]
    """Positions of experts in the block, by layer and expert; -1 for other blocks' experts."""
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
        on_replaced: Callable[[], None] = lambda: None,
    ) -> "ExpertBlock":
        """Open the block of `function`; raises `BlockError`.

        `threads` None stands for the function's share of the cores that the process may use, `limit` None
        (bytes of weights to hold) for its share of the memory.
        """
        try:
            manifest = FunctionManifest.read(partition, function)
            positions = _positions(manifest)
            limit = _share_of_memory(manifest) if limit is None else limit
            return cls(
                partition=partition,
                manifest=manifest,
                on_replaced=on_replaced,
                dtype=_ACTIVATION_DTYPE[manifest.dtype],
                shape=_shape(manifest),
                positions=positions,
                residency=Residency(_open(partition, manifest), limit),
                kernel=kernel,
                threads=threads or _share_of_cores(positions),
            )
        except ManifestError as error:
            raise BlockError(str(error)) from error
        except (LookupError, MemoryError, OSError, OverflowError, ValueError) as error:
            problem = f"{type(error).__name__}: {error}"
            raise BlockError(f"cannot open the block of {function} in {partition}: {problem}") from error

    @property
    def num_experts(self) -> int:
        """How many experts this block has, over all its layers."""
        return len(self.manifest.experts)

    @property
    def fits_beside_client(self) -> bool:
        """Whether each function of a layer can have a core, and their client another one."""
        return _functions_of_a_layer(self.positions) < len(os.sched_getaffinity(0))

    def run(self, invocation: Invocation) -> tuple[NDArray[Any], int]:
        """The weighted sums [T, H] over this block's experts, and how many of the experts were cold.

        Raises `InvocationRefused`.
        """
        layer_positions = self._positions_for(invocation)
        if invocation.resident_limit is not None:
            self.residency.set_limit(invocation.resident_limit)
        predicted = list(self._predicted(invocation))
        # Adding 1 counts an index of -1, another function's expert, as number 0, which is left out.
        counts = np.bincount(invocation.expert_index.ravel().astype(np.int64) + 1)[1:]
        experts = counts.nonzero()[0]
        _refuse_absent(invocation.layer, experts, layer_positions)
        if not experts.size:
            if predicted:
                self.residency.prefetch(predicted)
            return np.zeros_like(invocation.hidden_states), 0
        positions, rows = layer_positions[experts].tolist(), len(invocation.hidden_states)
        try:
            with self.residency.call(positions, counts[experts], rows, predicted) as waves:
                return self._weighted_sums(invocation, experts, waves), waves.cold
        except BlockDamaged as error:
            raise self._damage(error) from error
        except BlockReadError as error:
            raise InvocationRefused(500, "unreadable", str(error)) from error
        except TimeoutError as error:
            raise InvocationRefused(503, "busy", str(error)) from error

    def _damage(self, error: BlockDamaged) -> InvocationRefused:
        """The answer for a damaged expert; has the function end if the whole partition is another one."""
        if self.manifest.is_replaced(self.partition):
            message = f"{self.partition} has another partition now: the function ends, to be started anew"
            print(message, file=sys.stderr, flush=True)
            self.on_replaced()
            return InvocationRefused(503, "replaced", message)
        return InvocationRefused(500, "damaged", f"{error}: run `faasmoe verify`")

    def _weighted_sums(
        self, invocation: Invocation, experts: NDArray[np.int64], waves: Waves
    ) -> NDArray[Any]:
        """Add up the ascending experts, wave by wave.

        All waves but the last return float32 sums that the next one carries on: the result has the same bits
        as that of a single wave.
        """
        offsets = np.full(len(self.positions[invocation.layer]), -1, np.int64)
        done = 0
        carry: NDArray[Any] | None = None
        for wave in waves:
            present = experts[done : done + len(wave.offsets)]
            done += len(present)
            offsets[present] = wave.offsets
            index = invocation.expert_index
            output = carry = self.kernel.gated_ffn(
                self.residency.weights,
                offsets,
                self.shape,
                invocation.hidden_states,
                index if len(present) == len(experts) else _only(present, index, len(offsets)),
                invocation.expert_weight,
                threads=self.threads,
                carry=carry,
                partial=not wave.is_last,
            )
        return output

    def _predicted(self, invocation: Invocation) -> Iterator[int]:
        """The positions of the invocation's prefetch, without experts that this block does not have."""
        for layer, experts in invocation.prefetch.items():
            positions = self.positions.get(layer, _NO_POSITIONS)
            for expert in experts:
                if expert < len(positions) and positions[expert] >= 0:
                    yield int(positions[expert])

    def _positions_for(self, invocation: Invocation) -> NDArray[np.int64]:
        """The positions of the layer's experts; raises `InvocationRefused` for a wrong model or shape."""
        if invocation.model != self.manifest.fingerprint:
            message = f"this block is of model {self.manifest.fingerprint}, not {invocation.model!r}"
            raise InvocationRefused(409, "wrong_model", message)
        positions = self.positions.get(invocation.layer)
        if positions is None:
            message = f"this block has layers {sorted(self.positions)}, not {invocation.layer}"
            raise InvocationRefused(400, "wrong_layer", message)
        hidden_states = invocation.hidden_states
        if hidden_states.dtype != self.dtype:
            raise InvocationRefused(400, "wrong_dtype", f"hidden_states is not {self.manifest.dtype}")
        if hidden_states.shape[1] != self.shape.hidden_size:
            shape = list(hidden_states.shape)
            message = f"hidden_states is {shape}, its rows must have {self.shape.hidden_size} values"
            raise InvocationRefused(400, "wrong_shape", message)
        if invocation.expert_index.shape[1] > (top_k := self.manifest.num_experts_per_tok):
            # The kernel needs memory for each of them: a small body could ask for any amount.
            message = f"a row has {top_k} experts at most, not {invocation.expert_index.shape[1]}"
            raise InvocationRefused(400, "wrong_shape", message)
        return positions


def _refuse_absent(layer: int, experts: NDArray[np.int64], positions: NDArray[np.int64]) -> None:
    """Raise `InvocationRefused` for experts that the block does not have."""
    known = experts[experts < len(positions)]
    if len(known) < len(experts) or (positions[known] < 0).any():
        absent = [int(expert) for expert in experts if expert not in known or positions[expert] < 0]
        message = f"experts {absent} of layer {layer} are not in this block"
        raise InvocationRefused(404, UNKNOWN_EXPERT, message)


def _only(experts: NDArray[np.int64], index: NDArray[np.int16], num_experts: int) -> NDArray[np.int16]:
    """`index` with -1 in place of all other experts."""
    chosen = np.zeros(num_experts + 1, bool)
    chosen[experts] = True
    # An index of -1 finds the last element, which is never chosen.
    return np.where(chosen[index], index, np.int16(-1))


def _shape(manifest: FunctionManifest) -> ExpertShape:
    """The sizes of an expert; raises ValueError if its place in the file is too small for them."""
    shape = ExpertShape(
        manifest.hidden_size,
        manifest.intermediate_size,
        manifest.gate_up_dtype,
        manifest.down_dtype,
        manifest.activation,
        manifest.has_bias,
    )
    if shape.nbytes > manifest.expert_nbytes:
        raise ValueError(f"an expert needs {shape.nbytes} bytes, its place has {manifest.expert_nbytes}")
    return shape


def _open(partition: Path, manifest: FunctionManifest) -> BlockFile:
    """Open the block file; raises OSError, and `BlockError` if it is elsewhere or has another size."""
    path = partition / manifest.file
    if not path.resolve().is_relative_to(partition.resolve()):
        raise BlockError(f"{path} is a link out of the partition")
    file = BlockFile(path, manifest.offset, manifest.expert_nbytes, manifest.experts)
    if file.nbytes != manifest.nbytes:
        problem = f"{path} has {file.nbytes} bytes, its manifest says {manifest.nbytes}"
        file.close()
        raise BlockError(problem)
    return file


def _share_of_cores(positions: Mapping[int, NDArray[np.int64]]) -> int:
    """A layer's functions are called at the same time: the cores are divided among them."""
    return max(1, min(len(os.sched_getaffinity(0)), MAX_THREADS) // _functions_of_a_layer(positions))


def _functions_of_a_layer(positions: Mapping[int, NDArray[np.int64]]) -> int:
    """How many functions a layer has, if all of them have as many of its experts as this one."""
    of_layer = next(iter(positions.values()))
    return -(-len(of_layer) // max(1, int((of_layer >= 0).sum())))


def _share_of_memory(manifest: FunctionManifest) -> int:
    """The default limit, in bytes of weights: this block's share if the whole model ran on this machine.

    A control group that is smaller than the machine is taken to be this function's alone.
    """
    others = manifest.dense_nbytes + _CONTROL_PLANE_NBYTES + manifest.num_blocks * _FUNCTION_NBYTES
    of_machine = (machine_memory() * 9 // 10 - others) * manifest.nbytes // manifest.blocks_nbytes
    of_group = memory_limit().nbytes - _CONTAINER_NBYTES
    return max(0, min(of_machine, of_group, manifest.nbytes - manifest.offset))


def _positions(manifest: FunctionManifest) -> dict[int, NDArray[np.int64]]:
    """Positions of experts in the block, by layer and expert."""
    table: dict[int, NDArray[np.int64]] = {}
    for position, expert in enumerate(manifest.experts):
        if expert.layer not in table:
            table[expert.layer] = np.full(manifest.num_experts, -1, np.int64)
        table[expert.layer][expert.number] = position
    return table
