"""Layers of an image: tar archives with the same bytes for the same files, on any machine at any time.

A layer is written twice, once to compute its digest and once into the image, and is never stored in between:
building the image of a large model needs no disk space but the image's own.
"""

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfileobj
from typing import IO

from control_plane.deployment.image.contents import OWNER

TAR = "application/vnd.oci.image.layer.v1.tar"
"""Layers are not compressed: weights hardly shrink, and the digest then depends on the content alone."""
COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class Blob:
    """A part of an image: a layer, a configuration or a manifest."""

    media_type: str
    digest: str
    size: int
    diff_id: str
    """The digest of the uncompressed content: for layers that are compressed, this is not `digest`."""
    write: Callable[[IO[bytes]], None]
    """Writes the content to a file."""

    def descriptor(self) -> dict[str, object]:
        """The entry for this blob in a manifest or an index."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


class _DigestWriter(io.RawIOBase):
    """Computes the size and SHA-256 of the bytes written to it, and stores none of them."""

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
    """The blob with the content that `write` writes."""
    counted = _DigestWriter()
    write(counted)  # type: ignore[arg-type]
    digest = f"sha256:{counted.sha256.hexdigest()}"
    return Blob(media_type, digest, counted.size, digest, write)


def layer(files: Mapping[str, Path | bytes]) -> Blob:
    """An archive of files, by their paths in the image, and of the folders that contain them."""

    def write(output: IO[bytes]) -> None:
        with tarfile.open(fileobj=output, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            for name in sorted({parent for path in files for parent in _parents(path)}):
                archive.addfile(tar_entry(name, tarfile.DIRTYPE, 0o755))
            for name, content in sorted(files.items()):
                _add(archive, name, content)

    return blob(TAR, write)


def file_writer(path: Path) -> Callable[[IO[bytes]], None]:
    """A function that writes a file's content, for `Blob.write`."""

    def write(output: IO[bytes]) -> None:
        with path.open("rb") as file:
            copyfileobj(file, output, COPY_BYTES)

    return write


def tar_entry(
    name: str, kind: bytes = tarfile.REGTYPE, mode: int = 0o644, owner: int = OWNER
) -> tarfile.TarInfo:
    """The header of a file in an archive, without this machine's users or the current time."""
    header = tarfile.TarInfo(name)
    header.type, header.mode, header.mtime = kind, mode, 0
    header.uid = header.gid = owner
    return header


def _add(archive: tarfile.TarFile, name: str, content: Path | bytes) -> None:
    header = tar_entry(name)
    if isinstance(content, bytes):
        header.size = len(content)
        archive.addfile(header, io.BytesIO(content))
        return
    header.size = content.stat().st_size
    with content.open("rb") as file:
        archive.addfile(header, file)


def _parents(path: str) -> Iterator[str]:
    """The folders that contain a path, except the uppermost, which belongs to the base image."""
    for parent in Path(path).parents:
        if len(parent.parts) > 1:
            yield str(parent)
