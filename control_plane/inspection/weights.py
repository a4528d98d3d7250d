"""The forms in which a checkpoint's files hold their weights."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from control_plane.files import read_json_object
from control_plane.partition.checkpoint.gguf.container import read_header as read_gguf
from control_plane.partition.checkpoint.gguf.files import SUFFIX
from control_plane.partition.checkpoint.gguf.tensors import BlockTensor, tensors_of
from control_plane.partition.checkpoint.quantised.formats import quantisation_of
from control_plane.partition.checkpoint.reader import CONFIG_FILE, MAX_CONFIG_NBYTES, Checkpoint
from control_plane.partition.checkpoint.tensors.safetensors_file import StoredTensor, read_header


@dataclass(frozen=True)
class StoredWeights:
    """What the files hold."""

    format: str
    """safetensors or GGUF, with the `quant_method` of a quantised checkpoint."""
    nbytes: Mapping[str, int]
    """Bytes by the files' own types, the most first."""


def stored_weights(checkpoint: Checkpoint) -> StoredWeights:
    """Read the files' headers once more. Raises PartitionError."""
    paths = sorted({tensor.path for tensor in checkpoint.tensors.values()})
    nbytes: Counter[str] = Counter()
    if paths[0].suffix == SUFFIX:
        for tensor in tensors_of([read_gguf(path) for path in paths]).values():
            if isinstance(tensor, BlockTensor):
                nbytes[tensor.kind.name] += tensor.nbytes
            elif isinstance(tensor, StoredTensor):
                nbytes[tensor.dtype] += tensor.nbytes
        return StoredWeights("GGUF", dict(nbytes.most_common()))
    for path in paths:
        for tensor in read_header(path).values():
            nbytes[tensor.dtype] += tensor.nbytes
    return StoredWeights(_safetensors_format(checkpoint.folder), dict(nbytes.most_common()))


def _safetensors_format(folder: Path) -> str:
    quantisation = quantisation_of(read_json_object(folder / CONFIG_FILE, MAX_CONFIG_NBYTES))
    return f"safetensors, {quantisation.quant_method}" if quantisation else "safetensors"
