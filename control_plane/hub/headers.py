"""Fetches what describes a model, without its weights: config.json and the headers of the weights' files.

They become the files of a folder, which have the size of the whole ones, but take no room: what was not
fetched is a hole. Whatever reads the headers of a checkpoint reads these.
"""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from control_plane.errors import HubError, PartitionError
from control_plane.files import parse_json_object
from control_plane.hub.choice import gguf_of, safetensors_of
from control_plane.hub.repository import Repository
from control_plane.partition.checkpoint.gguf import container
from control_plane.partition.checkpoint.reader import (
    CONFIG_FILE,
    INDEX_FILE,
    MAX_CONFIG_NBYTES,
    MAX_INDEX_NBYTES,
    indexed_files,
)
from control_plane.partition.checkpoint.tensors.safetensors_file import MAX_HEADER_NBYTES

_FIRST_NBYTES = 1 << 20
"""What is fetched of a file at first: the headers of most are smaller."""
_MAX_STORED_SHAPES = 8 << 20


def fetch_headers(repository: Repository, folder: Path) -> Path:
    """Fetch the headers into a new folder; returns the folder, or the first file of a model in GGUF.

    Raises HubError, or PartitionError for a file that is malformed.
    """
    folder.mkdir(parents=True)
    weights: Sequence[str] = [] if repository.name.file else safetensors_of(repository.files)
    if not weights:
        paths = [folder / PurePosixPath(file).name for file in gguf_of(repository.name, repository.files)]
        for file, path in zip(gguf_of(repository.name, repository.files), paths, strict=True):
            _fetch_gguf(repository, file, path)
        return paths[0]
    _fetch_whole(repository, CONFIG_FILE, folder, MAX_CONFIG_NBYTES)
    if weights == [INDEX_FILE]:
        _fetch_whole(repository, INDEX_FILE, folder, MAX_INDEX_NBYTES)
        weights = sorted(set(indexed_files(folder / INDEX_FILE).values()))
    for file in weights:
        _fetch_safetensors(repository, file, folder / file)
    return folder


def _fetch_whole(repository: Repository, file: str, folder: Path, max_nbytes: int) -> None:
    nbytes = repository.nbytes(file)
    if nbytes > max_nbytes:
        raise HubError(f"{repository.name}: {file} is larger than {max_nbytes >> 20} MiB")
    (folder / file).write_bytes(repository.read(file, 0, nbytes))


def _fetch_safetensors(repository: Repository, file: str, path: Path) -> None:
    nbytes = repository.nbytes(file)
    data = repository.read(file, 0, min(_FIRST_NBYTES, nbytes))
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER_NBYTES:
        raise PartitionError(f"{path} is no safetensors file: a header of {length} bytes")
    if len(data) < 8 + length:
        data += repository.read(file, len(data), min(8 + length, nbytes) - len(data))
    with path.open("wb") as sparse:
        sparse.write(data)
        sparse.truncate(nbytes)
    header = parse_json_object(data[8 : 8 + length], f"{path} is no safetensors file: its header")
    # Some formats have the shapes of packed matrices as tensors, which safetensors puts first.
    first, last = _span_of_shapes(header)
    if 0 <= first < last <= first + _MAX_STORED_SHAPES and 8 + length + last <= nbytes:
        with path.open("r+b") as sparse:
            sparse.seek(8 + length + first)
            sparse.write(repository.read(file, 8 + length + first, last - first))


def _span_of_shapes(header: dict[str, object]) -> tuple[int, int]:
    """Where the tensors begin and end that hold shapes."""
    spans = [
        (first, last)
        for entry in header.values()
        if isinstance(entry, dict)
        and entry.get("dtype") in ("I64", "I32")
        and entry.get("shape") == [2]
        and isinstance(offsets := entry.get("data_offsets"), list)
        and len(offsets) == 2
        for first, last in [offsets]
        if type(first) is int and type(last) is int
    ]
    return min((first for first, _ in spans), default=0), max((last for _, last in spans), default=0)


def _fetch_gguf(repository: Repository, file: str, path: Path) -> None:
    """Only reading the header shows how long it is."""
    nbytes, data = repository.nbytes(file), b""
    while True:
        data += repository.read(file, len(data), min(max(_FIRST_NBYTES, len(data)), nbytes - len(data)))
        path.write_bytes(data)
        try:
            container.read_header(path)
            break
        except PartitionError:
            if len(data) >= min(nbytes, container.MAX_HEADER_NBYTES) or not data.startswith(b"GGUF"):
                raise
    os.truncate(path, nbytes)
