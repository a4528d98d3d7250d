"""Downloads the files of a model into the cache of the hub's library, where other programs find them, too."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers

from control_plane.errors import HubError, StorageFull
from control_plane.formatting import format_bytes
from control_plane.hub.cache import blob_file, cached, partial_of, remember
from control_plane.hub.choice import companions_of, gguf_of, safetensors_of
from control_plane.hub.partial_file import partial_file
from control_plane.hub.problems import hub_errors
from control_plane.hub.repository import Repository
from control_plane.partition.checkpoint.reader import INDEX_FILE, indexed_files

Progress = Callable[[int, int], None]
"""Receives the number of bytes that are here, and of those that shall be."""

RESUMED_NBYTES = 8 << 20
"""Smaller files are downloaded in one go."""
_SPARE_NBYTES = 64 << 20


def pull(repository: Repository, progress: Progress = lambda done, total: None) -> Path:
    """Download what a partition is made of; returns the folder, or the first file of a model in GGUF.

    Files that are here are not downloaded again, and half of a file is continued. Raises HubError, or its
    HubUnreachable, or StorageFull before anything is downloaded that would not fit.
    """
    files = wanted_files(repository)
    missing = [file for file in files if cached(repository.name, repository.commit, file) is None]
    _check_space(repository, missing)
    received = _Total(progress, sum(repository.nbytes(file) for file in files)).add
    for file in files:
        if file in missing:
            _download(repository, file, received)
        else:
            received(repository.nbytes(file))
    with hub_errors(repository.name):
        remember(repository.name, repository.commit)
    first = cached(repository.name, repository.commit, files[0])
    if first is None:
        raise HubError(f"{repository.name}: {files[0]} has vanished from the cache")
    return first if first.suffix == ".gguf" else first.parent


def wanted_files(repository: Repository) -> Sequence[str]:
    """The files that a partition is made of, weights first. Raises HubError.

    If the weights have an index, it is downloaded, since it names them.
    """
    name = repository.name
    weights: Sequence[str] = [] if name.file else safetensors_of(repository.files)
    if not weights:
        return gguf_of(name, repository.files)
    if weights == [INDEX_FILE]:
        index = _download(repository, INDEX_FILE, lambda nbytes: None)
        weights = [*sorted(set(indexed_files(index).values())), INDEX_FILE]
    for file in weights:
        repository.nbytes(file)
    return [*weights, *companions_of(repository.files)]


class _Total:
    """Counts the bytes of all files."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def add(self, nbytes: int) -> None:
        self._done += nbytes
        self._progress(self._done, self._total)


def _download(repository: Repository, file: str, received: Callable[[int], None]) -> Path:
    """Download a file into the cache; returns its path there."""
    remote, name = repository.files[file], repository.name
    resumes = remote.sha256 and RESUMED_NBYTES <= remote.nbytes <= constants.MAX_HTTP_DOWNLOAD_SIZE
    with hub_errors(name):
        if resumes and remote.sha256:
            _download_blob(repository, file, remote.sha256, received)
        # This links the blob, if it is there, to its name in the repository.
        path = Path(hf_hub_download(name.repository, file, revision=repository.commit))
        if not resumes:
            received(remote.nbytes)
        return path


def _download_blob(repository: Repository, file: str, sha256: str, received: Callable[[int], None]) -> None:
    """Download a file to its place in the cache, unless it is there by another name."""
    blob, nbytes = blob_file(repository.name, sha256), repository.nbytes(file)
    if blob.exists():
        received(nbytes)
        return
    blob.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(blob)
    with partial_file(partial, received) as target:
        there = target.resume()
        if there > nbytes:
            target.truncate()
            there = 0
        http_get(
            repository.url(file), target, resume_size=there, headers=build_hf_headers(), expected_size=nbytes
        )
        if target.sha256 != sha256:
            partial.unlink()
            raise HubError(f"{repository.name}: {file} was damaged on its way and is removed: try again")
        os.replace(partial, blob)


def _check_space(repository: Repository, missing: Sequence[str]) -> None:
    cache = Path(constants.HF_HUB_CACHE)
    existing = next(folder for folder in (cache, *cache.absolute().parents) if folder.is_dir())
    needed = sum(_missing_nbytes(repository, file) for file in missing)
    free = shutil.disk_usage(existing).free
    if free < needed + _SPARE_NBYTES:
        raise StorageFull(
            f"{repository.name} needs {format_bytes(needed)} more in {cache}, "
            f"which has {format_bytes(free)} free"
        )


def _missing_nbytes(repository: Repository, file: str) -> int:
    """The bytes of a file that are still to be downloaded."""
    remote = repository.files[file]
    if remote.sha256 is None:
        return remote.nbytes
    blob = blob_file(repository.name, remote.sha256)
    if blob.exists():
        return 0
    partial = partial_of(blob)
    return max(0, remote.nbytes - (partial.stat().st_size if partial.is_file() else 0))
