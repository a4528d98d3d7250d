"""Text files of one entry a line, and folders that are whole or absent.

Reads text files of one entry a line.

A folder that is whole or absent: written under another name, and renamed when it is complete.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from control_plane.errors import ConfigError, PartitionError


def read_lines(file: Path) -> list[tuple[str, str]]:
    """The lines that are not empty, each after where it stands. Raises `ConfigError`."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8: {error}") from error
    return [(f"{file}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]


@contextmanager
def partial_folder(target: Path) -> Iterator[Path]:
    """Yield an empty sibling of `target` to write to; a clean exit makes it `target`, any other removes it.

    What a killed run left is removed first. All that the body wrote is on the disk (fsync) before the rename.
    Raises PartitionError when `target` exists, another run is writing it, or the disk refuses.
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
    """Hold an exclusive lock on the folder itself, which the kernel drops however this process ends."""
    # A link could lead to a folder that is not ours to empty.
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
        # Whoever held it until now may have renamed or removed the folder since it was opened here.
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
