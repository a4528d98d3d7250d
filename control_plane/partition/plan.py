"""Plans a partition: its functions, dtypes and tensors are decided before anything is written."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from control_plane.partition.checkpoint.reader import Checkpoint
from control_plane.partition.checkpoint.tensors.tensor import common_type
from control_plane.partition.dense import DenseTensor, dense_tensors, stored_dense_types
from control_plane.partition.granularity import Granularity, default_granularity
from control_plane.partition.model.architecture import Architecture
from control_plane.partition.model.expert_tensors import ExpertKey, ExpertTensors, expert_tensors
from control_plane.partition.model.made_tensor import made_tensor
from control_plane.partition.packing import pack
from control_plane.partition.profile import Profile
from control_plane.partition.quantisation.dense_importance import DenseImportance
from control_plane.partition.recipes import StoredTypes, WeightTypes, choose_types
from functions.contract.manifest import PAGE_NBYTES
from functions.kernels.bfloat16 import Float32
from functions.kernels.packed_expert import ExpertShape

_MAX_NAME_LENGTH = 40


@dataclass(frozen=True)
class BlockPlan:
    """A function's name, and its experts by layer, in the order of the file."""

    function: str
    experts: Mapping[int, Sequence[int]]

    def expert_keys(self) -> Iterator[ExpertKey]:
        for layer, experts in self.experts.items():
            yield from ((layer, expert) for expert in experts)


@dataclass(frozen=True)
class Plan:
    """How a checkpoint will be split, and in which dtypes it will be stored."""

    name: str
    architecture: Architecture
    granularity: Granularity
    types: WeightTypes
    shape: ExpertShape
    experts: Mapping[ExpertKey, ExpertTensors]
    dense: Sequence[DenseTensor]
    profile: Profile | None
    input_squares: Mapping[int, Float32]
    """The mean squares [H] of the inputs of each layer's experts; empty without a profile."""

    @classmethod
    def make(
        cls,
        checkpoint: Checkpoint,
        architecture: Architecture,
        granularity: Granularity | None,
        dtype: str,
        dense_dtype: str,
        name: str,
        profile: Profile | None = None,
    ) -> "Plan":
        """Plan a partition; see `partitioner.partition` for the arguments.

        Raises ConfigError for a wrong dtype or granularity, PartitionError for a checkpoint that does not
        match its config.json, or a profile of another model.
        """
        layers = [layer.number for layer in architecture.layers]
        sizes = (architecture.num_experts, len(layers))
        granularity = granularity or default_granularity(*sizes, packed=profile is not None)
        granularity.check(*sizes)
        if profile is not None:
            profile.check(len(layers), architecture.num_experts, architecture.hidden_size)
        experts = expert_tensors(architecture, checkpoint.tensors)
        tensors = {
            name: made_tensor(name, entry, checkpoint.tensors) for name, entry in architecture.dense.items()
        }
        source = "bf16" if next(iter(experts.values())).up.tensor.dtype == "BF16" else "f32"
        stored = StoredTypes(_stored_types(experts.values()), stored_dense_types(architecture, tensors))
        types = choose_types(dtype, dense_dtype, source, stored)
        squares = dict(zip(layers, profile.input_squares, strict=True)) if profile else {}
        importance = DenseImportance(tensors, squares) if squares else None
        return cls(
            name=model_slug(name),
            architecture=architecture,
            granularity=granularity,
            types=types,
            shape=ExpertShape(
                architecture.hidden_size,
                architecture.intermediate_size,
                *types.experts,
                architecture.activation.activation,
                architecture.has_bias,
            ),
            experts=experts,
            dense=dense_tensors(architecture, tensors, types, importance),
            profile=profile,
            input_squares=squares,
        )

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """The numbers of the layers with experts, in ascending order."""
        return tuple(layer.number for layer in self.architecture.layers)

    @property
    def expert_nbytes(self) -> int:
        """Bytes of one packed expert in a block file, in whole pages."""
        return -(-self.shape.nbytes // PAGE_NBYTES) * PAGE_NBYTES

    @property
    def nbytes(self) -> int:
        """Bytes of all weights that will be written."""
        return sum(tensor.entry.nbytes for tensor in self.dense) + len(self.experts) * self.expert_nbytes

    def blocks(self) -> list[BlockPlan]:
        """The functions, in the order of their names."""
        # All numbers have the same number of digits, so that names sort by layer, then by expert or group.
        layer_width = max(2, len(str(self.moe_layers[-1])))
        expert_width = max(2, len(str(self.architecture.num_experts - 1)))
        if self.profile is None:
            return [
                BlockPlan(
                    f"{self.name}-l{_span(layers, layer_width)}-e{_span(experts, expert_width)}",
                    dict.fromkeys(layers, experts),
                )
                for layers, experts in self.granularity.cut(self.architecture.num_experts, self.moe_layers)
            ]
        return [
            BlockPlan(f"{self.name}-l{_span(list(experts), layer_width)}-g{group:0{expert_width}}", experts)
            for group, experts in self._packed(self.profile)
        ]

    def _packed(self, profile: Profile) -> Iterator[tuple[int, dict[int, Sequence[int]]]]:
        """Yields each function's group number within its layers, and its experts by layer."""
        granularity = self.granularity
        groups = [
            pack(use, together, granularity.experts_per_function)
            for use, together in zip(profile.use, profile.together, strict=True)
        ]
        for start in range(0, len(groups), granularity.layers_per_function):
            stop = start + granularity.layers_per_function
            layers = self.moe_layers[start:stop]
            for number, parts in enumerate(zip(*groups[start:stop], strict=True)):
                yield number, dict(zip(layers, parts, strict=True))


def _stored_types(experts: Collection[ExpertTensors]) -> tuple[str | None, str | None]:
    """The types that are nearest to the experts' matrices: to gate and up, and to down."""
    inward = {
        matrix.tensor.stored_type for expert in experts for matrix in (expert.gate, expert.up) if matrix
    }
    return common_type(inward), common_type(expert.down.tensor.stored_type for expert in experts)


def model_slug(name: str) -> str:
    """A model's name as the start of functions' names: lower-case letters, digits and dashes.

    It has at most 40 characters, since layers and experts have to fit into the 63 that OpenFaaS allows.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return slug[:_MAX_NAME_LENGTH].strip("-") or "model"


def _span(numbers: Sequence[int], width: int) -> str:
    """One number as "07", several as "00-07"."""
    first, last = f"{numbers[0]:0{width}}", f"{numbers[-1]:0{width}}"
    return first if len(numbers) == 1 else f"{first}-{last}"
