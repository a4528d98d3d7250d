"""`faasmoe image`: an OCI image of a partition's functions, without a container daemon.

The format: https://github.com/opencontainers/image-spec, an image layout in a tar archive, which `ctr images
import`, `skopeo copy oci-archive:...` and registries take.
"""

import json
import os
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import functions
from control_plane.deployment.image.base import Base, python_versions, read_base
from control_plane.deployment.image.layer import OWNER, Blob, blob, entry, layer
from control_plane.deployment.image.packages import MACHINES, chosen, download, unpacked
from control_plane.deployment.image.template import SOURCES, block_layers, required_packages
from control_plane.deployment.stack import MODEL_ANNOTATION
from control_plane.errors import ConfigError, PartitionError
from control_plane.partition.manifest import Manifest
from functions.contract.manifest import MANIFEST_FILE
from functions.contract.process import DEFAULT_PORT, HOST_VARIABLE, PARTITION_VARIABLE

CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
EPOCH = "1970-01-01T00:00:00Z"
HOME = "home/app"
PACKAGES = f"{HOME}/packages"
PORT = f"{DEFAULT_PORT}/tcp"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Of a base that tells none."""


@dataclass(frozen=True)
class ImageSpec:
    """What an image is made of."""

    partition: Path
    base: Path
    architectures: Sequence[str]
    tag: str
    """Its name, as in REGISTRY/NAME:TAG."""
    wheels: Path | None
    """A folder with the packages' wheels; without one, pip downloads them."""
    python: str
    """Version, such as 3.11: the base's."""
    kernels: Mapping[str, Path]
    """The compiled kernel, by architecture; where there is none, functions compute with NumPy."""


def write_image(spec: ImageSpec, output: Path, say: Callable[[str], object]) -> str:
    """Write the image; returns its digest, which is the same for the same input.

    Raises `PartitionError`, and `ConfigError` for a base, wheels or an output that do not do.
    """
    manifest = Manifest.load(spec.partition)
    platforms = {architecture: _platform(architecture) for architecture in spec.architectures}
    blocks = _block_layers(spec.partition, manifest)
    say(f"{len(blocks)} layers of {len(manifest.blocks)} expert blocks")
    with tempfile.TemporaryDirectory(prefix="faasmoe-image-", dir=_parent(output)) as work:
        images = []
        blobs: dict[str, Blob] = {}
        for architecture, platform in platforms.items():
            image, parts = _image(spec, manifest, blocks, architecture, Path(work))
            images.append({**image.descriptor(), "platform": platform})
            blobs |= {part.digest: part for part in parts}
            say(f"linux/{architecture}: {image.digest}")
        top = images[0]
        if len(images) > 1:
            index = _json_blob(INDEX, {"schemaVersion": 2, "mediaType": INDEX, "manifests": images})
            blobs[index.digest] = index
            top = index.descriptor()
        _write_archive(output, _named(top, spec.tag), blobs)
    return str(top["digest"])


def built_kernel() -> Path | None:
    """This machine's compiled kernel, if any. It needs a C library as new as the one here."""
    return next(iter(sorted(_code().glob("kernels/_gated_ffn*.so"))), None)


def _code() -> Path:
    return Path(functions.__path__[0])


def _image(
    spec: ImageSpec, manifest: Manifest, blocks: Sequence[Blob], architecture: str, work: Path
) -> tuple[Blob, list[Blob]]:
    """The manifest of one platform's image, and all its parts, itself among them."""
    folder = work / architecture
    folder.mkdir()
    base = read_base(spec.base, architecture, folder)
    if len(spec.architectures) > 1 and not base.tells_platform:
        raise ConfigError(f"{spec.base} is one machine's file system: an OCI layout can be for several")
    _check_python(base, spec, folder)
    names = required_packages()
    if spec.wheels is None:
        wheels = download(names, architecture, spec.python, folder)
    else:
        wheels = chosen(spec.wheels, names, architecture, spec.python)
    code = layer(_sources(spec.kernels.get(architecture)))
    own = [layer(unpacked(wheels, PACKAGES)), code, *blocks, _manifest_layer(spec.partition)]
    layers = [*base.layers, *own]
    config = _json_blob(
        CONFIG,
        {
            "created": EPOCH,
            **_platform(architecture),
            "config": _process(base, spec.python),
            "rootfs": {"type": "layers", "diff_ids": [each.diff_id for each in layers]},
        },
    )
    image = _json_blob(
        MANIFEST,
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor(),
            "layers": [each.descriptor() for each in layers],
            "annotations": {MODEL_ANNOTATION: manifest.fingerprint},
        },
    )
    return image, [*layers, config, image]


def _process(base: Base, python: str) -> dict[str, Any]:
    """How it runs; the base's own environment has the path to Python."""
    environment = [
        f"{HOST_VARIABLE}=0.0.0.0",
        f"{PARTITION_VARIABLE}=/{HOME}/partition",
        f"PYTHONPATH=/{PACKAGES}",
        "PYTHONUNBUFFERED=1",
    ]
    if not any(setting.startswith("PATH=") for setting in base.environment):
        environment.append(f"PATH={DEFAULT_PATH}")
    names = {setting.partition("=")[0] for setting in environment}
    inherited = [setting for setting in base.environment if setting.partition("=")[0] not in names]
    return {
        "User": f"{OWNER}:{OWNER}",
        "WorkingDir": f"/{HOME}",
        "Env": [*inherited, *environment],
        "Cmd": [f"python{python}", "-m", "functions.expert"],
        "ExposedPorts": {PORT: {}},
    }


def _block_layers(partition: Path, manifest: Manifest) -> list[Blob]:
    """Raises `PartitionError` for a block that is not there."""
    for block in manifest.blocks:
        if not (partition / block.file).is_file():
            raise PartitionError(f"{partition} lacks {block.file}, which its manifest names")
    return [
        layer({f"{HOME}/partition/{file}": partition / file for file in files})
        for files in block_layers(manifest)
    ]


def _manifest_layer(partition: Path) -> Blob:
    return layer({f"{HOME}/partition/{MANIFEST_FILE}": partition / MANIFEST_FILE})


def _sources(kernel: Path | None) -> dict[str, Path | bytes]:
    """The code that runs, with the kernel of one machine."""
    root = _code()
    files: dict[str, Path | bytes] = {
        f"{HOME}/{SOURCES}/{file.relative_to(root)}": file for file in root.rglob("*.py")
    }
    if kernel is not None:
        files[f"{HOME}/{SOURCES}/kernels/{kernel.name}"] = kernel
    return files


def _check_python(base: Base, spec: ImageSpec, work: Path) -> None:
    found = python_versions(base, work)
    if spec.python not in found:
        there = f"only {', '.join(sorted(found))}" if found else "no Python at all"
        raise ConfigError(f"{spec.base} has no Python {spec.python}, but {there}")


def _platform(architecture: str) -> dict[str, str]:
    if architecture not in MACHINES:
        raise ConfigError(f"no images for {architecture!r}; there are {', '.join(MACHINES)}")
    return {"architecture": architecture, "os": "linux"}


def _named(descriptor: Mapping[str, Any], tag: str) -> dict[str, Any]:
    """skopeo reads the first, containerd the second."""
    names = {"org.opencontainers.image.ref.name": tag, "io.containerd.image.name": tag}
    return {**descriptor, "annotations": names}


def _json_blob(media_type: str, value: object) -> Blob:
    content = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    return blob(media_type, partial(_write, content))


def _write(content: bytes, output: IO[bytes]) -> None:
    output.write(content)


def _write_archive(output: Path, top: Mapping[str, Any], blobs: Mapping[str, Blob]) -> None:
    """The layout: https://github.com/opencontainers/image-spec/blob/main/image-layout.md"""
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [top]}
    files = {
        "index.json": _json_blob(INDEX, index),
        "oci-layout": _json_blob("", {"imageLayoutVersion": "1.0.0"}),
    }
    files |= {f"blobs/sha256/{digest.removeprefix('sha256:')}": each for digest, each in blobs.items()}
    partial_output = output.with_name(output.name + ".partial")
    try:
        with partial_output.open("wb") as file, tarfile.open(fileobj=file, mode="w") as archive:
            for name, each in sorted(files.items()):
                told = entry(name, owner=0)
                told.size = each.size
                header = told.tobuf(archive.format, archive.encoding or "utf-8", archive.errors or "strict")
                padding = bytes(-each.size % tarfile.BLOCKSIZE)
                file.write(header)
                each.write(file)
                file.write(padding)
                # What is written past it, the archive has to know of for its end.
                archive.offset += len(header) + each.size + len(padding)
        partial_output.replace(output)
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error.strerror}") from error
    finally:
        partial_output.unlink(missing_ok=True)


def _parent(output: Path) -> Path:
    parent = output.absolute().parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ConfigError(f"cannot write {output}: {parent} is no folder that can be written to")
    return parent
