"""Finds the GGUF files of a model: one, or those into which it was split."""

import re
from collections.abc import Sequence
from pathlib import Path

from control_plane.errors import PartitionError

SUFFIX = ".gguf"

SPLIT = re.compile(r"(?P<model>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
"""The names of the files into which a model is split."""
_PROJECTOR = "mmproj"
"""The start of the names of files that hold only a model's image or sound encoder."""


def gguf_files(path: Path) -> Sequence[Path]:
    """The files of the model in a file or folder, in their order; none if it has none in GGUF.

    A folder with safetensors files counts as a checkpoint in those. Raises PartitionError for a folder with
    several models, and if a part is missing.
    """
    if path.suffix == SUFFIX and not path.is_dir():
        return _parts(path)
    if not path.is_dir() or any(path.glob("*.safetensors")):
        return []
    models = {_parts(file)[0] for file in path.glob(f"*{SUFFIX}") if not is_projector(file.name)}
    if len(models) > 1:
        names = ", ".join(sorted(file.name for file in models))
        raise PartitionError(f"{path} has several models: name the file of one of them ({names[:200]})")
    return _parts(models.pop()) if models else []


def is_projector(name: str) -> bool:
    """Whether a file of that name holds only a model's image or sound encoder."""
    return name.lower().startswith(_PROJECTOR)


def model_name(path: Path) -> str:
    """A model's name, by that of its file or folder."""
    if path.suffix != SUFFIX:
        return path.name
    split = SPLIT.fullmatch(path.name)
    return split["model"] if split else path.stem


def _parts(path: Path) -> Sequence[Path]:
    """The files of the model that a file is of."""
    split = SPLIT.fullmatch(path.name)
    if split is None:
        return [path]
    count = int(split["count"])
    names = [f"{split['model']}-{number:05}-of-{count:05}{SUFFIX}" for number in range(1, count + 1)]
    parts = [path.with_name(name) for name in names]
    for part in parts:
        if not part.exists():
            raise PartitionError(f"{part} is missing: the model has {count} files")
    return parts
