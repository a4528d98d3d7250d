"""Reads checkpoint folders of transformers: config.json, and safetensors weights, in shards or not."""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from control_plane.errors import PartitionError
from control_plane.files import read_json_object
from control_plane.partition.checkpoint.tensor_file import StoredTensor, Tensor, read_header

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_CONFIG_NBYTES = 1 << 20
MAX_INDEX_NBYTES = 32 << 20
MAX_FILE_NAME = 255

_COMPANIONS = (
    CONFIG_FILE,
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "chat_template.*",
)
# Code and pickles are never copied, because loading them can run any code.
_REFUSED_SUFFIXES = (".py", ".bin", ".pt")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint with checked headers. The weights stay on disk until they are read."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @classmethod
    def open(cls, folder: Path) -> "Checkpoint":
        """Read config.json and the headers of all weight files.

        Raises PartitionError, which names the file, if one is missing, malformed or truncated.
        """
        if not folder.is_dir():
            raise PartitionError(f"{folder} is not a folder")
        return cls(folder, read_json_object(folder / CONFIG_FILE, MAX_CONFIG_NBYTES), _read_tensors(folder))

    def companions(self) -> list[Path]:
        """The config and tokenizer files, which are copied into a partition."""
        found = {path for pattern in _COMPANIONS for path in self.folder.glob(pattern) if path.is_file()}
        return sorted(path for path in found if path.suffix not in _REFUSED_SUFFIXES)


def _read_tensors(folder: Path) -> dict[str, StoredTensor]:
    if (folder / WEIGHTS_FILE).exists():
        return read_header(folder / WEIGHTS_FILE)
    if (folder / INDEX_FILE).exists():
        return _read_shards(folder)
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        raise PartitionError(
            f"{folder} has only pickled weights, and loading a pickle can run any code; "
            "convert them to safetensors"
        )
    raise PartitionError(f"{folder} has neither {WEIGHTS_FILE} nor {INDEX_FILE}")


def _read_shards(folder: Path) -> dict[str, StoredTensor]:
    index = folder / INDEX_FILE
    weight_map = read_json_object(index, MAX_INDEX_NBYTES).get("weight_map")
    if not isinstance(weight_map, dict):
        raise PartitionError(f"{index} has no weight_map")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard or len(shard) > MAX_FILE_NAME:
            where = reprlib.repr(shard)
            raise PartitionError(f"{index}: {name[:80]!r} is in {where}, which is no file of this folder")
    shards = {shard: read_header(folder / shard) for shard in sorted(set(weight_map.values()))}
    for name, shard in weight_map.items():
        if name not in shards[shard]:
            raise PartitionError(f"{folder / shard} lacks {name[:80]!r}, which {index.name} says it has")
    return {name: shards[shard][name] for name, shard in weight_map.items()}
