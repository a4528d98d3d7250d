"""Base images: a root file system with Python, as an OCI layout or as a tar archive."""

import gzip
import json
import re
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shutil import copyfileobj
from typing import IO, Any

from control_plane.deployment.image.layer import COPY_BYTES, TAR, Blob, blob, file_writer
from control_plane.errors import ConfigError

INDEXES = {
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
}


@dataclass(frozen=True)
class Base:
    """A base image for one platform: its layers, and the environment variables that it sets."""

    layers: list[Blob]
    environment: list[str] = field(default_factory=list)
    has_platform: bool = True
    """Whether the base image names its platform; a plain archive does not."""


def read_base(path: Path, architecture: str, work: Path) -> Base:
    """Read the base image for an architecture such as amd64; an archive of a layout is unpacked in `work`.

    Raises `ConfigError` for a path that is no base image, or none for this architecture.
    """
    try:
        if path.is_dir():
            return _layout(path, architecture)
        with tarfile.open(path, "r:gz" if _is_gzip(path) else "r:") as archive:
            names = archive.getnames()
            if "oci-layout" in (name.removeprefix("./") for name in names):
                archive.extractall(work, filter="data")
                return _layout(work, architecture)
        return Base([_root(path)], has_platform=False)
    except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError, KeyError) as error:
        raise ConfigError(f"{path} is no OCI layout and no archive of a root file system: {error}") from error


def python_versions(base: Base, work: Path) -> set[str]:
    """The Python versions in a base image, such as 3.11. Raises `ConfigError` for an unreadable layer."""
    found = set()
    for number, layer in enumerate(base.layers):
        unpacked = work / f"layer-{number}"
        try:
            with unpacked.open("wb") as output:
                layer.write(output)
            with tarfile.open(unpacked) as archive:
                for entry in archive:
                    if matched := re.fullmatch(r"(?:\./)?usr/(?:local/)?bin/python(3\.\d+)", entry.name):
                        found.add(matched[1])
        except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
            raise ConfigError(f"a layer of the base ({layer.media_type}) cannot be read: {error}") from error
        unpacked.unlink()
    return found


def _layout(folder: Path, architecture: str) -> Base:
    manifest = _manifest(folder, _json(folder / "index.json"), architecture)
    config = _read(folder, manifest["config"])
    if config.get("architecture") != architecture:
        raise ConfigError(f"the base is for {config.get('architecture')}, not {architecture}")
    layers = [
        Blob(
            layer["mediaType"],
            layer["digest"],
            layer["size"],
            diff_id,
            file_writer(_blob(folder, layer["digest"])),
        )
        for layer, diff_id in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True)
    ]
    return Base(layers, list(config.get("config", {}).get("Env") or []))


def _manifest(folder: Path, index: Mapping[str, Any], architecture: str) -> Mapping[str, Any]:
    """The manifest for an architecture, in an index or in the indexes that it lists."""
    entries = [
        entry
        for entry in index["manifests"]
        if entry.get("platform", {}).get("architecture", architecture) == architecture
    ]
    if not entries:
        raise ConfigError(f"the base has nothing for {architecture}")
    found = _read(folder, entries[0])
    if entries[0].get("mediaType") in INDEXES or "manifests" in found:
        return _manifest(folder, found, architecture)
    return found


def _read(folder: Path, descriptor: Mapping[str, Any]) -> Mapping[str, Any]:
    return _json(_blob(folder, descriptor["digest"]))


def _blob(folder: Path, digest: str) -> Path:
    if not re.fullmatch("sha256:[0-9a-f]{64}", digest):
        raise ConfigError(f"not a digest: {digest!r}")
    return folder / "blobs" / "sha256" / digest.removeprefix("sha256:")


def _json(path: Path) -> Mapping[str, Any]:
    value = json.loads(path.read_bytes())
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return value


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _root(path: Path) -> Blob:
    """An archive, with or without gzip, as an uncompressed layer."""

    def write(output: IO[bytes]) -> None:
        with gzip.open(path) if _is_gzip(path) else path.open("rb") as source:
            copyfileobj(source, output, COPY_BYTES)

    return blob(TAR, write)
