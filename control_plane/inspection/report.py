"""What is known of a model before it is partitioned, as numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from control_plane.inspection.attention import cached_values, context, has_states
from control_plane.inspection.memory import Fit, fit, fixed_bytes
from control_plane.inspection.weights import StoredWeights, stored_weights
from control_plane.partition.checkpoint.reader import Checkpoint
from control_plane.partition.dense import HEAD, DenseTensor, KeptTensor
from control_plane.partition.model.architecture import Architecture
from control_plane.partition.plan import Plan

RECIPES = (
    ("auto", "auto"),
    ("f32", "auto"),
    ("bf16", "auto"),
    ("int8", "auto"),
    ("int8", "int8"),
    ("int4", "auto"),
    ("int4", "int4"),
)
"""Pairs of --dtype and --dense-dtype."""
BUDGETS = (4 * 10**9, 8 * 10**9, 16 * 10**9)


@dataclass(frozen=True)
class Machine:
    """What bounds the speed here. Bytes, and bytes per second."""

    memory: int
    memory_bandwidth: float
    disk_bandwidth: float | None
    """None where it was not measured, since no weights are here to read."""


@dataclass(frozen=True)
class Size:
    """A partition with some types of weights, in bytes."""

    dtype: str
    dense_dtype: str
    types: tuple[str, ...]
    """The types of the experts' matrices: one, or that of gate and up and that of down."""
    dense: int
    expert: int
    experts: int
    together: int
    per_token: int
    """What one token reads: the dense part without embeddings, and the experts that it uses."""
    fits: tuple[Fit, ...]
    """By memory budget, in the order of the report's."""


@dataclass(frozen=True)
class Report:
    """A model, and what it takes to serve it here."""

    name: str
    family: str
    way: str
    layers: int | None
    moe_layers: int
    experts: int
    experts_per_token: int
    functions: int
    context: int | None
    """Tokens; None if the config does not say."""
    kv_bytes_per_token: int
    has_states: bool
    """Whether a sequence has states besides keys and values."""
    weights: StoredWeights
    machine: Machine
    budgets: tuple[int, ...]
    sizes: tuple[Size, ...]

    def to_json(self) -> dict[str, Any]:
        """The object that `faasmoe inspect --json` prints."""
        return asdict(self)


def report(checkpoint: Checkpoint, name: str, architecture: Architecture, machine: Machine) -> Report:
    """What there is to say of a checkpoint. Its weights are not read.

    Raises PartitionError for a checkpoint that cannot be split.
    """
    config = _language_config(checkpoint.config)
    plans = {recipe: Plan.make(checkpoint, architecture, None, *recipe, name) for recipe in RECIPES}
    plan = plans["auto", "auto"]
    functions = plan.blocks()
    values = cached_values(architecture, config)
    budgets = (*BUDGETS, machine.memory)
    layers = config.get("num_hidden_layers")
    return Report(
        name=name,
        family=architecture.model_type,
        way=architecture.way,
        layers=layers if type(layers) is int else None,
        moe_layers=len(architecture.layers),
        experts=architecture.num_experts,
        experts_per_token=architecture.num_experts_per_tok,
        functions=len(functions),
        context=context(config),
        kv_bytes_per_token=values * _value_nbytes(plan),
        has_states=has_states(architecture),
        weights=stored_weights(checkpoint),
        machine=machine,
        budgets=budgets,
        sizes=tuple(
            _size(recipe, each, len(functions), budgets, machine) for recipe, each in _distinct(plans).items()
        ),
    )


def _distinct(plans: Mapping[tuple[str, str], Plan]) -> Mapping[tuple[str, str], Plan]:
    """The plans without those that are as `auto` is."""
    auto = plans["auto", "auto"].types
    return {
        recipe: plan for recipe, plan in plans.items() if recipe == ("auto", "auto") or plan.types != auto
    }


def _size(
    recipe: tuple[str, str], plan: Plan, functions: int, budgets: Sequence[int], machine: Machine
) -> Size:
    architecture = plan.architecture
    dense = sum(tensor.entry.nbytes for tensor in plan.dense)
    read = dense - sum(tensor.entry.nbytes for tensor in plan.dense if _is_embedding(tensor, architecture))
    layers, used = len(architecture.layers), architecture.num_experts_per_tok
    per_token = read + layers * used * plan.expert_nbytes
    fixed = fixed_bytes(plan, read, functions)
    return Size(
        dtype=recipe[0],
        dense_dtype=recipe[1],
        types=tuple(dict.fromkeys(plan.types.experts)),
        dense=dense,
        expert=plan.expert_nbytes,
        experts=len(plan.experts) * plan.expert_nbytes,
        together=plan.nbytes,
        per_token=per_token,
        fits=tuple(
            fit(plan, budget, fixed, functions, per_token, machine.memory_bandwidth, machine.disk_bandwidth)
            for budget in budgets
        ),
    )


def _is_embedding(tensor: DenseTensor, architecture: Architecture) -> bool:
    """Whether it is a table of embeddings, of which a token reads one row."""
    head = architecture.dense.get(f"{HEAD}.weight")
    return (
        isinstance(tensor, KeptTensor)
        and len(tensor.tensor.shape) == 2
        and ("embed" in tensor.tensor.name or (head is not None and tensor.tensor.shape == head.shape))
    )


def _value_nbytes(plan: Plan) -> int:
    return 2 if plan.types.dtype == "bf16" else 4


def _language_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of config.json that is on the language model."""
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, dict) else config
