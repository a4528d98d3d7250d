"""What serving a partition takes of memory: what is to be kept free, and the least that would do."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig

from control_plane.autoscaling.process_memory import unread_bytes, used_bytes
from control_plane.errors import ConfigError
from control_plane.formatting import format_bytes
from control_plane.partition.manifest import Manifest
from functions.host.memory import MemoryLimit

FUNCTION_OVERHEAD_BYTES = 20_000_000
"""A function's process beside its experts' weights, before it has told."""
HEAP_BYTES = 48_000_000
"""Requests on their way, threads' heaps, and libraries' code that is first used by a step."""
_SLOTS = 2
"""Experts that a function needs room for: one that computes, and one that is being read."""
_ROW_COPIES = 8
"""Float32 rows of hidden states that a step holds at a time."""
_CALL_COPIES = 3
"""Of the rows that functions get: gathered, encoded, and answered."""
_LOGIT_BYTES = 16
"""For each logit: itself, its probability, and its place among the sorted."""


@dataclass(frozen=True)
class StepShape:
    """What the size of a step's tensors depends on."""

    rows: int
    hidden_size: int
    intermediate_size: int
    """The widest of the dense part's."""
    experts_per_row: int
    logits_rows: int
    vocabulary: int
    context: int

    @classmethod
    def of(
        cls, manifest: Manifest, model: PretrainedConfig, *, rows: int, logits_rows: int, context: int
    ) -> "StepShape":
        """The shape of the largest step: `rows` rows, `logits_rows` of which get logits."""
        return cls(
            rows=rows,
            hidden_size=manifest.hidden_size,
            intermediate_size=getattr(model, "shared_expert_intermediate_size", model.intermediate_size),
            experts_per_row=manifest.num_experts_per_tok,
            logits_rows=logits_rows,
            vocabulary=model.vocab_size,
            context=context,
        )

    @property
    def nbytes(self) -> int:
        """A bound of what a step takes at its peak, beside weights, keys and values."""
        hidden = self.rows * self.hidden_size * 4
        return (
            _ROW_COPIES * hidden
            + _CALL_COPIES * self.experts_per_row * hidden
            + 3 * 4 * self.rows * self.intermediate_size
            + 5 * self.rows * self.context  # the mask of attention, as booleans and as numbers
            + _LOGIT_BYTES * self.logits_rows * self.vocabulary
        )


@dataclass(frozen=True)
class BlockSize:
    """A function's block, in experts."""

    experts: int
    least: int
    """Experts that the function must be able to hold."""


@dataclass(frozen=True)
class Footprint:
    """The control plane's reserve in bytes, and the blocks of all functions by their names."""

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

        The dense file is mapped: what is not read yet will be, except embeddings that stay on disk.
        """
        unread = unread_bytes(dense_file) - stored_embedding_bytes
        control_plane = used_bytes() + unread + kv_cache_bytes + step.nbytes + HEAP_BYTES
        return cls(control_plane, manifest.expert_nbytes, block_sizes(manifest))

    @property
    def least(self) -> int:
        """The smallest budget in which everything runs, if slowly."""
        experts = sum(block.least for block in self.blocks.values()) * self.expert_nbytes
        return self.control_plane + len(self.blocks) * FUNCTION_OVERHEAD_BYTES + experts

    def check(self, budget: int) -> None:
        """Raises `ConfigError`, with the least that would do, for a budget that is smaller."""
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
    """What everything takes, in bytes, beside what it may."""

    budget: int | None
    least: int
    """The smallest budget that would do."""
    control_plane: int
    overhead: int
    """Of the functions that are awake, beside weights."""
    experts: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.control_plane + self.overhead + self.experts


def check_limit(budget: int, limit: MemoryLimit) -> None:
    """Raises `ConfigError` for a budget that is more than may be used."""
    if budget > limit.nbytes:
        raise ConfigError(
            f"memory_budget: {format_bytes(budget)} is more than the {format_bytes(limit.nbytes)} "
            f"that {limit.source} allows"
        )


def block_sizes(manifest: Manifest) -> dict[str, BlockSize]:
    """The functions' blocks. The functions of a layer together hold the experts of one row there."""
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
    """A size that, given as a budget, is not smaller than it."""
    return f"{-(-nbytes // 1_000_000)}MB"
