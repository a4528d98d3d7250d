"""Models by what a user calls them: a path here, or a name on a hub."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from control_plane.errors import FaaSMoEError, HubUnreachable, PartitionError
from control_plane.files import cache_folder
from control_plane.hub.cache import known_commit, snapshot
from control_plane.hub.choice import gguf_of
from control_plane.hub.download import Progress, pull
from control_plane.hub.headers import fetch_headers
from control_plane.hub.names import HubName
from control_plane.hub.repository import Repository
from control_plane.partition.checkpoint.gguf.files import SUFFIX, gguf_files, model_name
from control_plane.partition.checkpoint.reader import Checkpoint
from functions.contract.manifest import MANIFEST_FILE


@dataclass(frozen=True)
class LocalModel:
    """A model that is here."""

    path: Path
    """The folder, or a file of a model in GGUF."""
    name: str | None = None
    """None for that of the folder or file."""
    partition: Path | None = None
    """Where `faasmoe up` keeps its partition; None for a folder beside it."""


def pulled(
    text: str, progress: Progress = lambda done, total: None, *, takes_partition: bool = False
) -> LocalModel:
    """Download a model by its name on the hub. Without a network, what was downloaded before counts.

    Each commit has a partition of its own. Where a partition is as good, one that is kept is taken, and
    nothing is downloaded. Raises ConfigError for a text that is no name, HubError, StorageFull, or
    PartitionError for files that are malformed.
    """
    name = HubName.parse(text)
    try:
        repository = Repository.open(name)
    except HubUnreachable:
        commit = known_commit(name)
        if takes_partition and commit and _is_partition(kept := _partition(name, commit)):
            return LocalModel(kept)
        path = _complete(name, snapshot(name, commit)) if commit else None
        if commit is None or path is None:
            raise
    else:
        commit = repository.commit
        if takes_partition and _is_partition(kept := _partition(name, commit)):
            return LocalModel(kept)
        path = pull(repository, progress)
    return LocalModel(path, _model_name(name, path), _partition(name, commit))


def _partition(name: HubName, commit: str) -> Path:
    """Where `faasmoe up` keeps the partition. Raises ConfigError if the user has no home folder."""
    parts = [*name.repository.split("/"), *filter(None, name.file.split("/")), commit[:12]]
    return cache_folder() / f"{'--'.join(parts)}.faasmoe"


def _is_partition(folder: Path) -> bool:
    return (folder / MANIFEST_FILE).exists()


@contextmanager
def opened(text: str) -> Iterator[tuple[Checkpoint, str, Sequence[Path]]]:
    """A checkpoint by its path or its id, its name, and the files with its weights, if they are here.

    Only the headers are here of a model on the hub, so its weights must not be read. Raises ConfigError,
    HubError or PartitionError.
    """
    if Path(text).exists():
        checkpoint = Checkpoint.open(Path(text).absolute())
        yield checkpoint, checkpoint.name, sorted({each.path for each in checkpoint.tensors.values()})
        return
    name = HubName.parse(text)
    repository = Repository.open(name)
    with tempfile.TemporaryDirectory(prefix="faasmoe-") as folder:
        place = Path(folder) / name.repository.rpartition("/")[2]
        try:
            path = fetch_headers(repository, place)
            yield Checkpoint.open(path), _model_name(name, path), []
        except PartitionError as error:
            raise _renamed(error, place, name) from error


def _renamed(error: FaaSMoEError, place: Path, name: HubName) -> FaaSMoEError:
    """The error with the model's name in place of a temporary folder's."""
    return type(error)(str(error).replace(str(place), name.repository))


def _model_name(name: HubName, path: Path) -> str:
    return model_name(path) if path.suffix == SUFFIX else name.repository.rpartition("/")[2]


def _complete(name: HubName, folder: Path) -> Path | None:
    """The model in a folder of the cache; None if a file of it is missing."""
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    try:
        if any(file.endswith(".safetensors") for file in files) and not name.file:
            Checkpoint.open(folder)
            return folder
        parts = gguf_files(folder / gguf_of(name, files)[0])
        return parts[0]
    except FaaSMoEError:
        return None
