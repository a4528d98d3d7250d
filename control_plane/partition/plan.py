"""What a partition will be, decided before a byte is written."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from control_plane.errors import ConfigError
from control_plane.partition.checkpoint import Checkpoint
from control_plane.partition.expert_tensors import ExpertKey, ExpertTensors, split_tensors
from control_plane.partition.families import ModelConfig
from control_plane.partition.granularity import Granularity, default_granularity
from control_plane.partition.manifest_schema import PAGE_NBYTES
from control_plane.partition.tensor_file import StoredTensor
from functions.expert.kernels.packing import ExpertShape

DTYPES = ("auto", "f32", "bf16", "int8")

_MAX_NAME_LENGTH = 40
_DENSE_ITEM_NBYTES = {"f32": 4, "bf16": 2}


@dataclass(frozen=True)
class BlockPlan:
    """One function's name, and its experts by layer in the order of the file."""

    function: str
    experts: Mapping[int, Sequence[int]]

    def expert_keys(self) -> Iterator[ExpertKey]:
        for layer, experts in self.experts.items():
            yield from ((layer, expert) for expert in experts)


@dataclass(frozen=True)
class Plan:
    """How a checkpoint will be cut, and in which dtypes it will be stored."""

    name: str
    config: ModelConfig
    granularity: Granularity
    dtype: str
    shape: ExpertShape
    experts: Mapping[ExpertKey, ExpertTensors]
    dense: Mapping[str, StoredTensor]

    @classmethod
    def make(cls, checkpoint: Checkpoint, granularity: Granularity | None, dtype: str, name: str) -> "Plan":
        """Arguments as `partition` takes them.

        Raises ConfigError for a wrong dtype or granularity, PartitionError for a checkpoint that does not
        hold what its config.json says.
        """
        config = ModelConfig.from_json(checkpoint.config)
        sizes = (config.num_experts, len(config.moe_layers))
        granularity = granularity or default_granularity(*sizes)
        granularity.check(*sizes)
        experts, dense = split_tensors(config, checkpoint)
        dense_dtype, expert_dtype = _dtypes(dtype, next(iter(experts.values())))
        shape = ExpertShape(config.hidden_size, config.intermediate_size, expert_dtype)
        return cls(model_slug(name), config, granularity, dense_dtype, shape, experts, dense)

    @property
    def expert_nbytes(self) -> int:
        """Bytes of one packed expert in a block file: whole pages."""
        return -(-self.shape.nbytes // PAGE_NBYTES) * PAGE_NBYTES

    @property
    def nbytes(self) -> int:
        """Bytes of all weights that will be written."""
        dense = sum(tensor.size for tensor in self.dense.values()) * _DENSE_ITEM_NBYTES[self.dtype]
        return dense + len(self.experts) * self.expert_nbytes

    def blocks(self) -> list[BlockPlan]:
        cut = self.granularity.cut(self.config.num_experts, self.config.moe_layers)
        # As many digits for all, so that names sort by layer, then by expert.
        layer_width = max(2, len(str(self.config.moe_layers[-1])))
        expert_width = max(2, len(str(self.config.num_experts - 1)))
        return [
            BlockPlan(
                f"{self.name}-l{_span(layers, layer_width)}-e{_span(experts, expert_width)}",
                dict.fromkeys(layers, experts),
            )
            for layers, experts in cut
        ]


def model_slug(name: str) -> str:
    """A model's name as functions' names begin: lower-case letters, digits and dashes.

    At most 40 characters, which leaves room for layers and experts in the 63 that OpenFaaS allows.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return slug[:_MAX_NAME_LENGTH].strip("-") or "model"


def _span(numbers: Sequence[int], width: int) -> str:
    """ "07", or "00-07" for several."""
    first, last = f"{numbers[0]:0{width}}", f"{numbers[-1]:0{width}}"
    return first if len(numbers) == 1 else f"{first}-{last}"


def _dtypes(dtype: str, expert: ExpertTensors) -> tuple[str, str]:
    """The dtypes of the dense part and of the experts."""
    source = "bf16" if expert.gate.tensor.dtype == "BF16" else "f32"
    match dtype:
        case "auto":
            return source, source
        case "int8":
            return source, "int8"
        case "f32" | "bf16":
            return dtype, dtype
    raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
