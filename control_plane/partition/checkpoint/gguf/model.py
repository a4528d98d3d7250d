"""A model in GGUF as a checkpoint of transformers has it: its config, and its tensors by module."""

import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from control_plane.errors import PartitionError, UnsupportedModel
from control_plane.partition.checkpoint.gguf.architectures import (
    gated_delta,
    gpt_oss,
    hybrid,
    latent,
    plain,
)
from control_plane.partition.checkpoint.gguf.architectures.base import (
    Architecture,
    Layer,
    base_config,
    check_all_heeded,
)
from control_plane.partition.checkpoint.gguf.architectures.metadata import Metadata
from control_plane.partition.checkpoint.gguf.architectures.rope import ROPE_FACTORS
from control_plane.partition.checkpoint.gguf.container import GgufHeader, read_header
from control_plane.partition.checkpoint.gguf.tensors import plain_dtype, tensors_of
from control_plane.partition.checkpoint.tensors.tensor import Tensor
from control_plane.partition.checkpoint.tensors.views import renamed

ARCHITECTURES: Mapping[str, Architecture] = {
    name: architecture
    for module in (plain, gated_delta, latent, gpt_oss, hybrid)
    for name, architecture in module.ARCHITECTURES.items()
}
"""By llama.cpp's names."""

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_BLOCK = re.compile(r"blk\.(?P<layer>\d{1,5})\.(?P<name>.+)")
_END_TOKENS = ("eos", "eot", "eom")
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


@dataclass(frozen=True)
class GgufModel:
    """What a checkpoint's folder would have."""

    config: Mapping[str, Any]
    generation_config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def read_model(files: Sequence[Path]) -> GgufModel:
    """Read the headers of a model's files. The weights stay on disk until they are read.

    Raises PartitionError for files that are malformed or do not fit together, or its UnsupportedModel for
    an architecture or a type that cannot be read.
    """
    headers = [read_header(file) for file in files]
    metadata = Metadata(files[0], headers[0].metadata)
    _check_split(headers)
    architecture = ARCHITECTURES.get(metadata.architecture)
    if architecture is None:
        name, known = reprlib.repr(metadata.architecture), ", ".join(sorted(ARCHITECTURES))
        raise UnsupportedModel(f"{files[0]} is of the architecture {name}; these are supported: {known}")
    stored = tensors_of(headers)
    config = base_config(metadata, stored)
    own = architecture.config(metadata, stored)
    check_all_heeded(metadata, architecture)
    rope = config["rope_parameters"] | own.pop("rope_parameters", {})
    config |= own | {"rope_parameters": rope, "dtype": _DTYPES[plain_dtype(stored)]}
    return GgufModel(config, _generation_config(metadata), _by_module(architecture, config, stored))


def _generation_config(metadata: Metadata) -> dict[str, Any]:
    ends = dict.fromkeys(token for name in _END_TOKENS if (token := metadata.token(name)) is not None)
    stated = {name: metadata.entries.get(f"general.sampling.{key}") for key, name in _SAMPLING.items()}
    return {
        "bos_token_id": metadata.token("bos"),
        "eos_token_id": list(ends) or None,
        "pad_token_id": metadata.token("padding"),
        **{name: value for name, value in stated.items() if type(value) in (int, float)},
    }


def _check_split(headers: Sequence[GgufHeader]) -> None:
    for number, header in enumerate(headers):
        stated = (header.metadata.get("split.no", 0), header.metadata.get("split.count", 0) or 1)
        if stated != (number, len(headers)):
            raise PartitionError(
                f"{header.path} says that it is part {reprlib.repr(stated[0])} of {reprlib.repr(stated[1])}, "
                f"not {number} of {len(headers)}"
            )


def _by_module(
    architecture: Architecture, config: Mapping[str, Any], stored: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors by the names of their modules. Those of layers that only predict ahead are left out."""
    layers = {number: Layer(number, {}) for number in range(config["num_hidden_layers"])}
    made: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        block = _BLOCK.fullmatch(name)
        if name == ROPE_FACTORS:
            continue
        if block is None:
            if name not in architecture.top:
                raise PartitionError(f"{tensor.path}: {name[:80]!r} is no tensor that is known")
            if change := architecture.change_top.get(name):
                tensor = change(tensor)
            _add(made, renamed(tensor, architecture.top[name]))
        elif int(block["layer"]) in layers:
            layers[int(block["layer"])].left[block["name"]] = tensor
    for layer in layers.values():
        for tensor in architecture.layer(layer, dict(config)):
            _add(made, tensor)
    return made


def _add(made: dict[str, Tensor], tensor: Tensor) -> None:
    if tensor.name in made:
        raise PartitionError(f"{tensor.path} has {tensor.name[:80]!r} twice, by different names")
    made[tensor.name] = tensor
