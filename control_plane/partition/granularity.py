"""How many experts of how many layers one function serves."""

from collections.abc import Sequence
from dataclasses import dataclass

from control_plane.errors import ConfigError

COMMUNITY_FUNCTIONS = 15
"""The number of functions that every edition of OpenFaaS allows."""


@dataclass(frozen=True)
class Granularity:
    """Blocks of `experts_per_function` consecutive experts x `layers_per_function` consecutive MoE layers.

    If the numbers do not divide evenly, the last block of a layer or of the model is smaller.
    """

    experts_per_function: int
    layers_per_function: int

    def check(self, num_experts: int, num_layers: int) -> None:
        """Raise ConfigError, with the allowed range, if a model of these sizes cannot be cut this way."""
        _check_range("experts per function", self.experts_per_function, num_experts)
        _check_range("layers per function", self.layers_per_function, num_layers)

    def num_functions(self, num_experts: int, num_layers: int) -> int:
        """The number of functions for a model of these sizes."""
        return _runs(num_experts, self.experts_per_function) * _runs(num_layers, self.layers_per_function)

    def is_even(self, num_experts: int, num_layers: int) -> bool:
        """Whether all functions get the same number of experts."""
        return num_experts % self.experts_per_function == 0 and num_layers % self.layers_per_function == 0

    def cut(self, num_experts: int, moe_layers: Sequence[int]) -> list[tuple[Sequence[int], range]]:
        """The blocks as (layers, experts), by layer; each expert of each layer is in exactly one block."""
        return [
            (
                moe_layers[layer : layer + self.layers_per_function],
                range(expert, min(expert + self.experts_per_function, num_experts)),
            )
            for layer in range(0, len(moe_layers), self.layers_per_function)
            for expert in range(0, num_experts, self.experts_per_function)
        ]


def finest_within(max_functions: int, num_experts: int, num_layers: int) -> Granularity:
    """The granularity with the most functions, up to `max_functions` (>= 1).

    Tie-break: the most experts per function, because a token then calls fewer functions per layer.
    """
    candidates = (
        Granularity(experts, layers)
        for experts in _even_sizes(num_experts)
        for layers in _even_sizes(num_layers)
    )
    return max(
        (c for c in candidates if c.num_functions(num_experts, num_layers) <= max_functions),
        key=lambda c: (c.num_functions(num_experts, num_layers), c.experts_per_function),
    )


def default_granularity(num_experts: int, num_layers: int, packed: bool = False) -> Granularity:
    """Whole layers, with as few layers per function as every edition of OpenFaaS can deploy.

    A token then makes one call per layer. Functions load and evict single experts, so smaller functions
    hardly save memory (docs/benchmarks.md, *Packing*). `packed` means that experts are grouped by a profile,
    which needs several functions per layer: then this is the finest granularity that all editions can deploy.
    """
    if packed:
        return finest_within(COMMUNITY_FUNCTIONS, num_experts, num_layers)
    return Granularity(num_experts, _runs(num_layers, COMMUNITY_FUNCTIONS))


def _even_sizes(count: int) -> set[int]:
    """For each possible number of runs of `count` items, the run length that divides them most evenly."""
    return {_runs(count, runs) for runs in range(1, count + 1)}


def _runs(count: int, size: int) -> int:
    return -(-count // size)


def _check_range(what: str, value: int, largest: int) -> None:
    if not 1 <= value <= largest:
        raise ConfigError(f"{what} must be from 1 to {largest} for this model, not {value}")
