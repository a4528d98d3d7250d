"""Writes OCI images as one tar archive, without a container daemon.

The format is an image layout (https://github.com/opencontainers/image-spec) in a tar archive, which
`ctr images import`, `skopeo copy oci-archive:...` and registries read.
"""

import json
import tarfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

from control_plane.deployment.image.layer import Blob, blob, tar_entry
from control_plane.errors import ConfigError

CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


def json_blob(media_type: str, value: object) -> Blob:
    """A JSON document: the same bytes for the same value."""
    content = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    return blob(media_type, partial(_write, content))


def write_archive(output: Path, image: Mapping[str, Any], tag: str, blobs: Mapping[str, Blob]) -> None:
    """Write an image layout: https://github.com/opencontainers/image-spec/blob/main/image-layout.md

    `image` is the descriptor of the image's manifest or index, `blobs` are all parts by their digests. The
    file is complete or absent. Raises `ConfigError` if it cannot be written.
    """
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [_named(image, tag)]}
    files = {
        "index.json": json_blob(INDEX, index),
        "oci-layout": json_blob("", {"imageLayoutVersion": "1.0.0"}),
    }
    files |= {f"blobs/sha256/{digest.removeprefix('sha256:')}": each for digest, each in blobs.items()}
    partial_output = output.with_name(output.name + ".partial")
    try:
        with partial_output.open("wb") as file, tarfile.open(fileobj=file, mode="w") as archive:
            for name, each in sorted(files.items()):
                _add(archive, file, name, each)
        partial_output.replace(output)
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error.strerror}") from error
    finally:
        partial_output.unlink(missing_ok=True)


def _add(archive: tarfile.TarFile, file: IO[bytes], name: str, content: Blob) -> None:
    """Add a blob, which writes itself: `TarFile.addfile` would need a file to read from."""
    entry = tar_entry(name, owner=0)
    entry.size = content.size
    header = entry.tobuf(archive.format, archive.encoding or "utf-8", archive.errors or "strict")
    padding = bytes(-content.size % tarfile.BLOCKSIZE)
    file.write(header)
    content.write(file)
    file.write(padding)
    # The archive pads its end by its own offset, which does not see the bytes written here.
    archive.offset += len(header) + content.size + len(padding)


def _named(descriptor: Mapping[str, Any], tag: str) -> dict[str, Any]:
    """The descriptor with the tag in two annotations: skopeo reads the first, containerd the second."""
    names = {"org.opencontainers.image.ref.name": tag, "io.containerd.image.name": tag}
    return {**descriptor, "annotations": names}


def _write(content: bytes, output: IO[bytes]) -> None:
    output.write(content)
