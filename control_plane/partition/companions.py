"""The small files of a checkpoint, of which a partition has copies: config, tokenizer and chat templates.

Of a quantised checkpoint, they are those of the unquantised one; of a model in GGUF, they are made of its
metadata.

The tokenizer is stored a second time, in the one form in which it is served.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from control_plane.errors import PartitionError
from control_plane.files import parse_json_object, regular_size, write_atomically
from control_plane.partition.checkpoint.gguf.files import gguf_files
from control_plane.partition.checkpoint.gguf.model import read_model
from control_plane.partition.checkpoint.quantised.formats import without_quantisation
from control_plane.partition.checkpoint.reader import CONFIG_FILE, INDEX_FILE, Checkpoint
from control_plane.partition.checkpoint.stored_tokenizer import STORED_TOKENIZER
from control_plane.partition.checkpoint.tokenizer import read_tokenizer
from control_plane.partition.manifest import Manifest
from control_plane.partition.model.inspection import inspect
from control_plane.partition.partition_files import check_inside
from functions.contract.manifest import MANIFEST_FILE

MAX_COMPANION_NBYTES = 256 << 20
"""The largest file that is copied."""
MAX_TEMPLATES = 64
"""The most chat templates in a folder of their own."""

GENERATION_FILE = "generation_config.json"
_TEMPLATES = "additional_chat_templates/*.jinja"
COMPANIONS = (
    CONFIG_FILE,
    GENERATION_FILE,
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "sentencepiece*.model",
    "chat_template.*",
    _TEMPLATES,
)
"""Patterns of the small files' names."""
# Code and pickles are never copied, because loading them can run any code.
REFUSED_SUFFIXES = (".py", ".bin", ".pt", ".pkl")


def copy_companions(checkpoint: Path, folder: Path) -> dict[str, str]:
    """Copy a checkpoint's small files into a folder; returns their SHA-256 (hex) by name.

    Raises PartitionError for a file that cannot be read, or is too large.
    """
    checksums = {}
    for name, data in chain(_companions(checkpoint), _made(checkpoint)):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
        checksums[name] = hashlib.sha256(data).hexdigest()
    return checksums


def update_companions(checkpoint: Path, folder: Path) -> Sequence[str]:
    """Bring the small files of a partition up to date with its checkpoint's; returns the names that changed.

    The weights stay. The partition gets another fingerprint if anything has changed. Raises PartitionError if
    the weights have changed, too, or if a new config.json does not match them.
    """
    manifest = Manifest.load(folder)
    if _newest_weights(checkpoint) > (folder / MANIFEST_FILE).stat().st_mtime:
        raise PartitionError(
            f"{checkpoint} has changed after its partition was made: remove {folder} to partition it again"
        )
    found = dict(_companions(checkpoint))
    if _checksums(found).items() == {each for each in manifest.files.items() if each[0] != STORED_TOKENIZER}:
        # The tokenizer need not be read again, which takes seconds.
        return []
    found.update(_made(checkpoint))
    files = _checksums(found)
    changed = sorted({name for name, _ in files.items() ^ manifest.files.items()})
    if changed:
        if CONFIG_FILE in changed:
            _check_config(checkpoint, manifest)
        try:
            _replace(folder, {name: found.get(name) for name in changed}, replace(manifest, files=files))
        except OSError as error:
            raise PartitionError(f"cannot write to {folder}: {error.strerror}") from error
    return changed


def _check_config(checkpoint: Path, manifest: Manifest) -> None:
    """Raise PartitionError if the model of the checkpoint's config.json is not that of the partition."""
    opened = Checkpoint.open(checkpoint.absolute())
    found = inspect(opened)
    numbers = {
        "model_type": found.model_type,
        "hidden_size": found.hidden_size,
        "intermediate_size": found.intermediate_size,
        "num_experts": found.num_experts,
        "num_experts_per_tok": found.num_experts_per_tok,
        "moe_layers": tuple(layer.number for layer in found.layers),
        "way": found.way,
    }
    for field, value in numbers.items():
        if value != getattr(manifest, field):
            raise PartitionError(f"{opened.folder / CONFIG_FILE} and the manifest differ in {field}")


def _replace(folder: Path, changed: Mapping[str, bytes | None], manifest: Manifest) -> None:
    """Write or remove the files that have changed, and then write the manifest. Raises OSError.

    If it stops half-way, files differ from the old manifest, and the next update does it all again.
    """
    for name in changed:
        (folder / name).parent.mkdir(exist_ok=True)
    check_inside(folder, changed)
    # Keep the permissions: another user's server may read the partition.
    mode = (folder / MANIFEST_FILE).stat().st_mode & 0o777
    for name, data in changed.items():
        if data is None:
            (folder / name).unlink(missing_ok=True)
        else:
            write_atomically(folder / name, data, mode)
    write_atomically(folder / MANIFEST_FILE, manifest.json(), mode)


def _companions(checkpoint: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the small files. Raises PartitionError."""
    if files := gguf_files(checkpoint):
        model = read_model(files)
        yield CONFIG_FILE, _json(model.config)
        yield GENERATION_FILE, _json(model.generation_config)
        return
    found = {path for pattern in COMPANIONS for path in checkpoint.glob(pattern) if path.is_file()}
    if sum(path.parent != checkpoint for path in found) > MAX_TEMPLATES:
        raise PartitionError(f"{checkpoint / _TEMPLATES}: more than {MAX_TEMPLATES} chat templates")
    for path in sorted(found):
        if path.suffix not in REFUSED_SUFFIXES:
            data = _read(path)
            yield path.relative_to(checkpoint).as_posix(), _unquantised(path, data)


def _unquantised(path: Path, data: bytes) -> bytes:
    """The content of a file for a partition, whose weights are not quantised in the checkpoint's way."""
    if path.name != CONFIG_FILE:
        return data
    config = parse_json_object(data, str(path))
    plain = without_quantisation(config)
    return data if plain == config else _json(plain)


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _made(checkpoint: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of the stored tokenizer, if the checkpoint has one. Raises PartitionError."""
    if tokenizer := read_tokenizer(checkpoint):
        yield STORED_TOKENIZER, tokenizer


def _checksums(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def _newest_weights(checkpoint: Path) -> float:
    """Time of the last change to the weights. Seconds since 1970."""
    paths = [*gguf_files(checkpoint), *checkpoint.glob("*.safetensors"), checkpoint / INDEX_FILE]
    return max((path.stat().st_mtime for path in paths if path.exists()), default=0.0)


def _read(path: Path) -> bytes:
    if regular_size(path) > MAX_COMPANION_NBYTES:
        raise PartitionError(f"{path} is larger than {MAX_COMPANION_NBYTES >> 20} MiB")
    try:
        return path.read_bytes()
    except OSError as error:
        raise PartitionError(f"cannot read {path}: {error.strerror}") from error
