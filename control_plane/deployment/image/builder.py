"""`faasmoe image`: builds the image of a partition's functions on top of a base image with Python."""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from control_plane.deployment.image.archive import CONFIG, INDEX, MANIFEST, json_blob, write_archive
from control_plane.deployment.image.base import Base, python_versions, read_base
from control_plane.deployment.image.contents import (
    MODEL_ANNOTATION,
    OWNER,
    SOURCES,
    block_layers,
    source_folder,
)
from control_plane.deployment.image.extensions import compiled_extensions, cross_compiler
from control_plane.deployment.image.layer import Blob, layer
from control_plane.deployment.image.packages import (
    MACHINES,
    REQUIRED_PACKAGES,
    chosen,
    download,
    own_architecture,
    unpacked,
)
from control_plane.errors import ConfigError, PartitionError
from control_plane.partition.manifest import Manifest
from functions.contract.manifest import MANIFEST_FILE
from functions.contract.process import DEFAULT_PORT, HOST_VARIABLE, PARTITION_VARIABLE

EPOCH = "1970-01-01T00:00:00Z"
HOME = "home/app"
PACKAGES = f"{HOME}/packages"
PORT = f"{DEFAULT_PORT}/tcp"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""PATH for a base image that sets none."""


@dataclass(frozen=True)
class ImageSpec:
    """The inputs of an image."""

    partition: Path
    base: Path
    architectures: Sequence[str]
    tag: str
    """The image's name, as in REGISTRY/NAME:TAG."""
    wheels: Path | None
    """A folder with the packages' wheels; None downloads them with pip."""
    python: str
    """The base image's Python version, such as 3.11."""


def write_image(spec: ImageSpec, output: Path, say: Callable[[str], object]) -> str:
    """Write the image to `output`; returns its digest, which is the same for the same input.

    `say` gets a line about each part. Raises `PartitionError` for a bad partition, and `ConfigError` for a
    bad base image, missing wheels, code that cannot be compiled, or an output that cannot be written.
    """
    manifest = Manifest.load(spec.partition)
    platforms = {architecture: _platform(architecture) for architecture in spec.architectures}
    blocks = _block_layers(spec.partition, manifest)
    say(f"{len(blocks)} layers of {len(manifest.blocks)} expert blocks")
    with tempfile.TemporaryDirectory(prefix="faasmoe-image-", dir=_parent(output)) as work:
        images = []
        blobs: dict[str, Blob] = {}
        for architecture, platform in platforms.items():
            image, parts = _image(spec, manifest, blocks, architecture, Path(work), say)
            images.append({**image.descriptor(), "platform": platform})
            blobs |= {part.digest: part for part in parts}
            say(f"linux/{architecture}: {image.digest}")
        top = images[0]
        if len(images) > 1:
            index = json_blob(INDEX, {"schemaVersion": 2, "mediaType": INDEX, "manifests": images})
            blobs[index.digest] = index
            top = index.descriptor()
        write_archive(output, top, spec.tag, blobs)
    return str(top["digest"])


def _image(
    spec: ImageSpec,
    manifest: Manifest,
    blocks: Sequence[Blob],
    architecture: str,
    work: Path,
    say: Callable[[str], object],
) -> tuple[Blob, list[Blob]]:
    """The manifest of one platform's image, and all blobs of the image, the manifest among them."""
    folder = work / architecture
    folder.mkdir()
    base = read_base(spec.base, architecture, folder)
    if len(spec.architectures) > 1 and not base.has_platform:
        raise ConfigError(f"{spec.base} is one machine's file system: an OCI layout can be for several")
    _check_python(base, spec, folder)
    packages = layer(unpacked(_wheels(spec, architecture, folder), PACKAGES))
    extensions = compiled_extensions(architecture, folder)
    if not extensions:
        say(f"linux/{architecture}: functions compute with NumPy, which is slow: {_missing(architecture)}")
    code = layer(_sources(extensions))
    layers = [*base.layers, packages, code, *blocks, _manifest_layer(spec.partition)]
    config = _config(base, spec.python, architecture, layers)
    image = json_blob(
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


def _wheels(spec: ImageSpec, architecture: str, folder: Path) -> list[Path]:
    if spec.wheels is None:
        return download(REQUIRED_PACKAGES, architecture, spec.python, folder)
    return chosen(spec.wheels, REQUIRED_PACKAGES, architecture, spec.python)


def _config(base: Base, python: str, architecture: str, layers: Sequence[Blob]) -> Blob:
    """The image's configuration: its layers, and how its process is started."""
    process = {
        "User": f"{OWNER}:{OWNER}",
        "WorkingDir": f"/{HOME}",
        "Env": _environment(base),
        "Cmd": [f"python{python}", "-m", "functions.expert"],
        "ExposedPorts": {PORT: {}},
    }
    return json_blob(
        CONFIG,
        {
            "created": EPOCH,
            **_platform(architecture),
            "config": process,
            "rootfs": {"type": "layers", "diff_ids": [each.diff_id for each in layers]},
        },
    )


def _environment(base: Base) -> list[str]:
    """The base image's environment, which has the path to Python, and the function's settings."""
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
    return [*inherited, *environment]


def _block_layers(partition: Path, manifest: Manifest) -> list[Blob]:
    """Raises `PartitionError` for a block that is missing."""
    for block in manifest.blocks:
        if not (partition / block.file).is_file():
            raise PartitionError(f"{partition} lacks {block.file}, which its manifest names")
    return [
        layer({f"{HOME}/partition/{file}": partition / file for file in files})
        for files in block_layers(manifest)
    ]


def _manifest_layer(partition: Path) -> Blob:
    return layer({f"{HOME}/partition/{MANIFEST_FILE}": partition / MANIFEST_FILE})


def _sources(extensions: Mapping[str, Path]) -> dict[str, Path | bytes]:
    """The function's code by its paths in the image, with one architecture's compiled extensions."""
    root = source_folder()
    files = {str(file.relative_to(root)): file for file in root.rglob("*.py")}
    return {f"{HOME}/{SOURCES}/{name}": file for name, file in {**files, **extensions}.items()}


def _missing(architecture: str) -> str:
    """Why there are no compiled extensions for an architecture."""
    if architecture == own_architecture():
        return "no compiler was found when faasmoe was installed"
    return f"there is no {cross_compiler(architecture)} here"


def _check_python(base: Base, spec: ImageSpec, work: Path) -> None:
    found = python_versions(base, work)
    if spec.python not in found:
        there = f"only {', '.join(sorted(found))}" if found else "no Python at all"
        raise ConfigError(f"{spec.base} has no Python {spec.python}, but {there}")


def _platform(architecture: str) -> dict[str, str]:
    if architecture not in MACHINES:
        raise ConfigError(f"no images for {architecture!r}; there are {', '.join(MACHINES)}")
    return {"architecture": architecture, "os": "linux"}


def _parent(output: Path) -> Path:
    parent = output.absolute().parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ConfigError(f"cannot write {output}: {parent} is no folder that can be written to")
    return parent
