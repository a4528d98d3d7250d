"""Reads checkpoints: folders of transformers with config.json and safetensors weights, in shards or not, and
models in GGUF.

What is quantised there is dequantised when it is read.
"""

import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from control_plane.errors import PartitionError
from control_plane.files import read_json_object
from control_plane.partition.checkpoint.gguf.files import gguf_files, model_name
from control_plane.partition.checkpoint.gguf.model import read_model
from control_plane.partition.checkpoint.quantised.formats import dequantised, without_quantisation
from control_plane.partition.checkpoint.tensors.safetensors_file import StoredTensor, read_header
from control_plane.partition.checkpoint.tensors.tensor import Tensor

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_CONFIG_NBYTES = 1 << 20
MAX_INDEX_NBYTES = 32 << 20
MAX_FILE_NAME = 255

SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
"""The names of files into which weights are split."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint with checked headers. The weights stay on disk until they are read.

    Config and tensors are those of the unquantised checkpoint.
    """

    folder: Path
    """The folder, or the GGUF file."""
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @classmethod
    def open(cls, folder: Path) -> "Checkpoint":
        """Read config.json and the headers of all weight files, or those of a model in GGUF.

        `folder` may also be a GGUF file. Raises PartitionError, which names the file, if one is missing,
        malformed or truncated.
        """
        if files := gguf_files(folder):
            model = read_model(files)
            return cls(folder, model.config, model.tensors)
        if not folder.is_dir():
            raise PartitionError(f"{folder} is not a folder")
        config = read_json_object(folder / CONFIG_FILE, MAX_CONFIG_NBYTES)
        tensors = dequantised(_read_tensors(folder), config)
        return cls(folder, without_quantisation(config), tensors)

    @property
    def name(self) -> str:
        """The model's name."""
        return model_name(self.folder)


def _read_tensors(folder: Path) -> dict[str, StoredTensor]:
    if (folder / WEIGHTS_FILE).exists():
        return read_header(folder / WEIGHTS_FILE)
    if (folder / INDEX_FILE).exists():
        return _read_indexed(folder)
    if shards := sorted(path for path in folder.iterdir() if SHARD.fullmatch(path.name)):
        return _read_shards(shards)
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        raise PartitionError(
            f"{folder} has only pickled weights, and loading a pickle can run any code; "
            "convert them to safetensors"
        )
    raise PartitionError(f"{folder} has neither {WEIGHTS_FILE} nor {INDEX_FILE}")


def _read_shards(shards: Sequence[Path]) -> dict[str, StoredTensor]:
    """The tensors of shards without an index: their names say how many there should be."""
    count = int(shards[0].name.removesuffix(".safetensors")[-5:])
    wanted = {f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)}
    if odd := sorted(wanted ^ {path.name for path in shards}):
        raise PartitionError(
            f"{shards[0].parent} has no {INDEX_FILE}, and of {count} shards {odd[0]} is missing or too many"
        )
    tensors: dict[str, StoredTensor] = {}
    for path in shards:
        for name, tensor in read_header(path).items():
            if name in tensors:
                raise PartitionError(f"{path} and {tensors[name].path.name} both have {name[:80]!r}")
            tensors[name] = tensor
    return tensors


def indexed_files(index: Path) -> Mapping[str, str]:
    """The name of the file that has each tensor, from an index. Raises PartitionError."""
    weight_map = read_json_object(index, MAX_INDEX_NBYTES).get("weight_map")
    if not isinstance(weight_map, dict):
        raise PartitionError(f"{index} has no weight_map")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard or len(shard) > MAX_FILE_NAME:
            where = reprlib.repr(shard)
            raise PartitionError(f"{index}: {name[:80]!r} is in {where}, which is no file of this folder")
    return weight_map


def _read_indexed(folder: Path) -> dict[str, StoredTensor]:
    index = folder / INDEX_FILE
    weight_map = indexed_files(index)
    shards = {shard: read_header(folder / shard) for shard in sorted(set(weight_map.values()))}
    for name, shard in weight_map.items():
        if name not in shards[shard]:
            raise PartitionError(f"{folder / shard} lacks {name[:80]!r}, which {index.name} says it has")
    return {name: shards[shard][name] for name, shard in weight_map.items()}
