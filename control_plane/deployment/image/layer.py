"""Layers of an image: tar archives that are the same bytes for the same files, whoever packs them, and when.

A layer is written twice, once for its digest and once where it belongs, and is nowhere in between: those of a
large model take no room beside the image.
"""

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfileobj
from typing import IO

TAR = "application/vnd.oci.image.layer.v1.tar"
"""Not compressed: weights hardly shrink, and a layer is then known by the digest of what is in it."""
OWNER = 10001
"""User and group of all files, and of the process: a number, since Kubernetes cannot read names."""
COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class Blob:
    """Some bytes of an image."""

    media_type: str
    digest: str
    size: int
    diff_id: str
    """Of a layer, the digest of the archive when it is not compressed; else as the digest."""
    write: Callable[[IO[bytes]], None]
    """Writes them."""

    def descriptor(self) -> dict[str, object]:
        """How manifests and indexes name it."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


class _Hash(io.RawIOBase):
    """Counts what is written to it, and keeps nothing of it."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, content: bytes | memoryview) -> int:  # type: ignore[override]
        self.sha256.update(content)
        self.size += len(content)
        return len(content)


def blob(media_type: str, write: Callable[[IO[bytes]], None]) -> Blob:
    """What `write` writes."""
    counted = _Hash()
    write(counted)  # type: ignore[arg-type]
    digest = f"sha256:{counted.sha256.hexdigest()}"
    return Blob(media_type, digest, counted.size, digest, write)


def layer(files: Mapping[str, Path | bytes]) -> Blob:
    """An archive of these files, by their paths in the image, and of the folders that they are in."""

    def write(output: IO[bytes]) -> None:
        with tarfile.open(fileobj=output, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            for name in sorted({parent for path in files for parent in _parents(path)}):
                archive.addfile(entry(name, tarfile.DIRTYPE, 0o755))
            for name, content in sorted(files.items()):
                _add(archive, name, content)

    return blob(TAR, write)


def entry(name: str, kind: bytes = tarfile.REGTYPE, mode: int = 0o644, owner: int = OWNER) -> tarfile.TarInfo:
    """What an archive tells of a file, with nothing of this machine or of today in it."""
    told = tarfile.TarInfo(name)
    told.type, told.mode, told.mtime = kind, mode, 0
    told.uid = told.gid = owner
    return told


def _add(archive: tarfile.TarFile, name: str, content: Path | bytes) -> None:
    told = entry(name)
    if isinstance(content, bytes):
        told.size = len(content)
        archive.addfile(told, io.BytesIO(content))
        return
    told.size = content.stat().st_size
    with content.open("rb") as file:
        archive.addfile(told, file)


def _parents(path: str) -> Iterator[str]:
    """The folders that a path is in, but for the uppermost, which is the base's own."""
    for parent in Path(path).parents:
        if len(parent.parts) > 1:
            yield str(parent)


def copy_of(path: Path) -> Callable[[IO[bytes]], None]:
    """Writes a file's content."""

    def write(output: IO[bytes]) -> None:
        with path.open("rb") as file:
            copyfileobj(file, output, COPY_BYTES)

    return write
