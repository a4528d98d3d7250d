"""Downloads the files of a model into the cache of the hub's library, where other programs find them, too."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils import build_hf_headers

from control_plane.errors import HubError, StorageFull
from control_plane.files import write_atomically
from control_plane.formatting import format_bytes
from control_plane.hub.choice import companions_of, gguf_of, safetensors_of
from control_plane.hub.names import HubName
from control_plane.hub.partial_file import partial_file
from control_plane.hub.problems import hub_errors
from control_plane.hub.repository import COMMIT, Repository
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
    missing = [file for file in files if cached(repository, file) is None]
    _check_space(repository, missing)
    received = _Total(progress, sum(repository.nbytes(file) for file in files)).add
    for file in files:
        if file in missing:
            _download(repository, file, received)
        else:
            received(repository.nbytes(file))
    _remember(repository)
    first = cached(repository, files[0])
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


def cached(repository: Repository, file: str) -> Path | None:
    """Where a file is in the cache; None if it is not there."""
    found = try_to_load_from_cache(repository.name.repository, file, revision=repository.commit)
    return Path(found) if isinstance(found, str) else None


def cached_snapshot(name: HubName) -> Path | None:
    """The folder of the cache with the files of a model, as far as they are there; None without any.

    For a machine without a network, which cannot ask which commit is the newest.
    """
    reference = _reference(name)
    commit = reference.read_text() if reference.is_file() else name.revision or ""
    snapshot = _folder(name) / "snapshots" / commit
    return snapshot if COMMIT.fullmatch(commit) and snapshot.is_dir() else None


def _folder(name: HubName) -> Path:
    """The model's folder in the cache, whose layout is documented:
    https://huggingface.co/docs/huggingface_hub/guides/manage-cache
    """
    return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name.repository, repo_type="model"))


def _reference(name: HubName) -> Path:
    """The file of the cache that says which commit a branch or tag is."""
    return _folder(name) / "refs" / (name.revision or "main")


def _remember(repository: Repository) -> None:
    """Write down which commit a branch or tag is, for a time without a network."""
    name = repository.name
    if name.revision == repository.commit:
        return
    with hub_errors(name):
        reference = _reference(name)
        reference.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(reference, repository.commit.encode(), 0o644)


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
    """Download a file to its place in the cache, which is named by its hash."""
    blob = _folder(repository.name) / "blobs" / sha256
    blob.parent.mkdir(parents=True, exist_ok=True)
    partial, nbytes = blob.with_name(f"{sha256}.incomplete"), repository.nbytes(file)
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
    folder = _folder(repository.name) / "blobs"
    needed = sum(repository.nbytes(file) for file in missing)
    needed -= sum(
        partial.stat().st_size
        for file in missing
        if (partial := folder / f"{repository.files[file].sha256}.incomplete").is_file()
    )
    free = shutil.disk_usage(existing).free
    if free < needed + _SPARE_NBYTES:
        raise StorageFull(
            f"{repository.name} needs {format_bytes(needed)} more in {cache}, "
            f"which has {format_bytes(free)} free"
        )
