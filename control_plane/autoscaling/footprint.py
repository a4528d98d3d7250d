"""Computes the memory that serving a partition takes, and the smallest budget that is enough."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from control_plane.autoscaling.process_memory import unread_bytes, used_bytes
from control_plane.errors import ConfigError
from control_plane.formatting import format_bytes
from control_plane.partition.manifest import Manifest
from functions.contract.messages import ResidencyReport
from functions.host.memory import MemoryLimit

FUNCTION_OVERHEAD_BYTES = 8_000_000
"""The memory of a forked function's process without experts' weights, until it reports its own number. In a
container it is three times as much."""
HEAP_BYTES = 48_000_000
"""A reserve for requests in progress, threads' heaps, and library code that is loaded with the first step."""
_SLOTS = 2
"""The least experts that a function needs memory for: one that computes, and one that is being read."""
_ROW_COPIES = 8
"""Copies of the float32 hidden states that a step holds at the same time."""
_CALL_COPIES = 3
"""Copies of the rows that are sent to functions: gathered, encoded, and in the answer."""
_LOGIT_BYTES = 16
"""Bytes per logit: the logit, its probability, and its place in the sorted order."""


@dataclass(frozen=True)
class StepShape:
    """The numbers that determine the size of a step's tensors."""

    rows: int
    hidden_size: int
    intermediate_size: int
    """The largest one in the dense part."""
    experts_per_row: int
    logits_rows: int
    vocabulary: int
    masked: int
    """Tokens in the mask of a row; 0 without masks."""

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        *,
        rows: int,
        dense_width: int,
        logits_rows: int,
        vocabulary: int,
        masked: int,
    ) -> "StepShape":
        """The shape of the largest step: `rows` rows, `logits_rows` of which get logits."""
        return cls(
            rows=rows,
            hidden_size=manifest.hidden_size,
            intermediate_size=dense_width,
            experts_per_row=manifest.num_experts_per_tok,
            logits_rows=logits_rows,
            vocabulary=vocabulary,
            masked=masked,
        )

    @property
    def nbytes(self) -> int:
        """An upper bound of a step's memory in bytes, without weights, keys and values."""
        hidden = self.rows * self.hidden_size * 4
        return (
            _ROW_COPIES * hidden
            + _CALL_COPIES * self.experts_per_row * hidden
            + 3 * 4 * self.rows * self.intermediate_size
            + 5 * self.rows * self.masked  # the mask of attention, as booleans and as numbers
            + _LOGIT_BYTES * self.logits_rows * self.vocabulary
        )


@dataclass(frozen=True)
class BlockSize:
    """The size of a function's block, in experts."""

    experts: int
    least: int
    """The smallest number of experts that the function must be able to hold in memory."""


@dataclass(frozen=True)
class Footprint:
    """The memory of a partition: the control plane's reserve in bytes, and all functions' blocks."""

    control_plane: int
    expert_nbytes: int
    blocks: Mapping[str, BlockSize]

    @classmethod
    def measure(
        cls,
        manifest: Manifest,
        dense_file: Path,
        step: StepShape,
        *,
        kv_cache_bytes: int,
        stored_embedding_bytes: int,
    ) -> "Footprint":
        """The footprint of this process once everything is loaded.

        The dense file is mapped: the parts not read yet will be read, except embeddings, which stay on disk.
        """
        unread = unread_bytes(dense_file) - stored_embedding_bytes
        control_plane = used_bytes() + unread + kv_cache_bytes + step.nbytes + HEAP_BYTES
        return cls(control_plane, manifest.expert_nbytes, block_sizes(manifest))

    @property
    def least(self) -> int:
        """The smallest budget in bytes with which everything runs, if slowly."""
        experts = sum(block.least for block in self.blocks.values()) * self.expert_nbytes
        return self.control_plane + len(self.blocks) * FUNCTION_OVERHEAD_BYTES + experts

    def use(
        self, budget: int | None, own_bytes: int, reports: Collection[ResidencyReport], unknown: int
    ) -> "MemoryUse":
        """The memory in use by this process, functions with reports, and `unknown` functions without."""
        overhead = sum(report.overhead_bytes or FUNCTION_OVERHEAD_BYTES for report in reports)
        overhead += unknown * FUNCTION_OVERHEAD_BYTES
        experts = sum(report.resident_bytes for report in reports)
        return MemoryUse(budget, self.least, own_bytes, overhead, experts)

    def check(self, budget: int) -> None:
        """Raises `ConfigError`, with the smallest possible budget, if `budget` is smaller than that."""
        if budget < self.least:
            functions = self.least - self.control_plane
            raise ConfigError(
                f"memory_budget: {format_bytes(budget)} is too little; "
                f"at least {_rounded_up(self.least)} would do: {format_bytes(self.control_plane)} for the "
                f"control plane with its KV cache (kv_cache_mb), and "
                f"{format_bytes(functions)} for {len(self.blocks)} functions"
            )


@dataclass(frozen=True)
class MemoryUse:
    """The memory in use by all parts, and the budget, in bytes."""

    budget: int | None
    least: int
    """The smallest budget that is enough."""
    control_plane: int
    overhead: int
    """The memory of all awake functions without experts' weights."""
    experts: int

    @property
    def total(self) -> int:
        """The memory of all parts together."""
        return self.control_plane + self.overhead + self.experts


def check_limit(budget: int, limit: MemoryLimit) -> None:
    """Raises `ConfigError` for a budget above the limit of this process."""
    if budget > limit.nbytes:
        raise ConfigError(
            f"memory_budget: {format_bytes(budget)} is more than the {format_bytes(limit.nbytes)} "
            f"that {limit.source} allows"
        )


def block_sizes(manifest: Manifest) -> dict[str, BlockSize]:
    """The size of each function's block.

    The least of the functions of a layer adds up to the experts of one row, so that a row's experts fit.
    """
    functions_of = {
        layer: sum(layer in block.experts for block in manifest.blocks) for layer in manifest.moe_layers
    }
    sizes = {}
    for block in manifest.blocks:
        fewest = min(functions_of[layer] for layer in block.experts)
        least = max(_SLOTS, -(-manifest.num_experts_per_tok // fewest))
        sizes[block.function] = BlockSize(block.num_experts, min(least, block.num_experts))
    return sizes


def _rounded_up(nbytes: int) -> str:
    """A text for `nbytes`, rounded up so that it can be given as a budget."""
    return f"{-(-nbytes // 1_000_000)}MB"
