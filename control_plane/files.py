"""Reads text and JSON files within bounds, writes atomically, and knows where state is kept."""

import fcntl
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from control_plane.errors import ConfigError, PartitionError


def read_lines(file: Path) -> list[tuple[str, str]]:
    """The lines of a UTF-8 file that are not blank, as pairs of "FILE, line NUMBER" and text.

    Raises `ConfigError` if the file cannot be read.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8: {error}") from error
    return [(f"{file}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]


def state_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """The folder for what programs keep: $XDG_STATE_HOME/faasmoe, or ~/.local/state/faasmoe.

    Raises `ConfigError` if it needs a home folder and the user has none.
    """
    return _folder("XDG_STATE_HOME", "~/.local/state", environment)


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """The folder for what can be made again: $XDG_CACHE_HOME/faasmoe, or ~/.cache/faasmoe.

    Raises `ConfigError` if it needs a home folder and the user has none.
    """
    return _folder("XDG_CACHE_HOME", "~/.cache", environment)


def _folder(variable: str, default: str, environment: Mapping[str, str]) -> Path:
    """See https://specifications.freedesktop.org/basedir-spec."""
    try:
        folder = environment.get(variable) or Path(default).expanduser()
    except RuntimeError as error:
        raise ConfigError(str(error)) from error
    return Path(folder, "faasmoe")


def write_atomically(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace a file in one step, so that nobody sees half of it. By default only its owner can read it.

    Raises `OSError`.
    """
    descriptor, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
    _sync(path.parent)


def read_json_object(path: Path, max_nbytes: int) -> dict[str, Any]:
    """The JSON object in a regular file of at most `max_nbytes` bytes. Raises `PartitionError`."""
    regular_size(path)
    try:
        with path.open("rb") as file:
            data = file.read(max_nbytes + 1)
    except OSError as error:
        raise PartitionError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > max_nbytes:
        raise PartitionError(f"{path} is larger than {max_nbytes >> 20} MiB")
    return parse_json_object(data, str(path))


def parse_json_object(data: bytes, source: str) -> dict[str, Any]:
    """The JSON object in bytes from `source`: Unicode, with unique keys. Raises `PartitionError`."""
    try:
        document = json.loads(data, object_pairs_hook=_unique)
        if b"\\ud" in data.lower():
            # Half of a surrogate pair cannot be written anywhere, not even into an error.
            json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise PartitionError(f"{source} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise PartitionError(f"{source} is not a JSON object")
    return document


def regular_size(path: Path) -> int:
    """The bytes of a regular file. Raises `PartitionError` for others: opening a pipe would wait for ever."""
    try:
        status = path.stat()
    except OSError as error:
        raise PartitionError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise PartitionError(f"{str(path)!r} is no file's name: {error}") from error
    if not stat.S_ISREG(status.st_mode):
        raise PartitionError(f"{path} is not a regular file")
    return status.st_size


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's members, whose names must differ: readers may choose either of two."""
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("an object has the same name twice")
    return members


@contextmanager
def partial_folder(target: Path) -> Iterator[Path]:
    """Write a folder that either exists completely or not at all.

    Yields an empty folder next to `target`. If the block succeeds, its files are flushed to disk (fsync) and
    the folder is renamed to `target`; otherwise it is removed. Files of an earlier run that was killed are
    removed first. Raises `PartitionError` if `target` exists, if another run is writing it, or if writing
    fails.
    """
    if target.exists():
        raise PartitionError(f"{target} exists already: remove it, or choose another folder")
    partial = target.parent / f".{target.name}.partial"
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with _locked(partial):
            try:
                _empty(partial)
                yield partial
                _sync_tree(partial)
                partial.rename(target)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
        _sync(target.parent)
    except OSError as error:
        raise PartitionError(f"cannot write {target}: {error.strerror}") from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on a folder. The kernel releases it when the process ends in any way."""
    # O_NOFOLLOW: a symbolic link could lead to a folder that must not be emptied.
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if not _lock(descriptor, folder):
            raise PartitionError(f"another run is writing to {folder}")
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The previous holder may have renamed or removed the folder between the open and the lock.
        return os.path.samestat(os.fstat(descriptor), folder.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _sync_tree(folder: Path) -> None:
    for path, _, files in os.walk(folder):
        for name in files:
            _sync(Path(path, name))
        _sync(Path(path))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
