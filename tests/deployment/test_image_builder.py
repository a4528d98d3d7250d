"""Images of `faasmoe image` have the right layout and layers, are reproducible, and run functions."""

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httptools
import numpy as np
import psutil
import pytest
import xxhash

from control_plane.deployment.image.builder import ImageSpec, write_image
from control_plane.deployment.image.extensions import compiled_extensions, cross_compiler, extension_sources
from control_plane.deployment.image.packages import MACHINES
from control_plane.errors import ConfigError
from tests.support.command_line import error_line, faasmoe
from tests.support.functions.expert_process import expert_process
from tests.support.models.tiny_partition import TinyPartition

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
TAG = "registry.example:5000/faasmoe-expert:test"
ELF_MACHINES = {"x86_64": 62, "aarch64": 183}
BASE_ENVIRONMENT = ["PATH=/usr/local/bin:/usr/bin", "LANG=C.UTF-8", "PYTHONPATH=/elsewhere"]


@dataclass(frozen=True)
class Image:
    """The files of an image archive."""

    files: Mapping[str, bytes]

    @classmethod
    def read(cls, path: Path) -> "Image":
        with tarfile.open(path) as archive:
            return cls({entry.name: archive.extractfile(entry).read() for entry in archive})  # type: ignore[union-attr]

    def blob(self, descriptor: Mapping[str, Any]) -> bytes:
        """The content of a blob, which must match its descriptor."""
        content = self.files[f"blobs/{descriptor['digest'].replace(':', '/')}"]
        assert hashlib.sha256(content).hexdigest() == descriptor["digest"].removeprefix("sha256:")
        assert len(content) == descriptor["size"]
        return content

    @property
    def top(self) -> Any:
        (entry,) = json.loads(self.files["index.json"])["manifests"]
        return entry

    def manifests(self) -> list[Any]:
        """The manifest of each platform."""
        top = json.loads(self.blob(self.top))
        return [json.loads(self.blob(entry)) for entry in top["manifests"]] if "manifests" in top else [top]

    def config(self, manifest: Any) -> Any:
        return json.loads(self.blob(manifest["config"]))

    def unpack(self, manifest: Any, folder: Path) -> None:
        """Unpack the layers one after the other, as a container runtime does."""
        for layer, diff_id in zip(
            manifest["layers"], self.config(manifest)["rootfs"]["diff_ids"], strict=True
        ):
            content = self.blob(layer)
            if layer["mediaType"].endswith("gzip"):
                content = gzip.decompress(content)
            assert f"sha256:{hashlib.sha256(content).hexdigest()}" == diff_id
            with tarfile.open(fileobj=io.BytesIO(content)) as archive:
                archive.extractall(folder, filter="tar")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system with an empty program in the place of Python."""
    path = tmp_path_factory.mktemp("base") / "root.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in (f"usr/local/bin/python{PYTHON}", "etc/os-release"):
            entry = tarfile.TarInfo(name)
            entry.size = 4
            archive.addfile(entry, io.BytesIO(b"base"))
    return path


@pytest.fixture(scope="module")
def layout(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OCI layout of the root file system for both architectures, with a compressed layer."""
    folder = tmp_path_factory.mktemp("layout")
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def add(content: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    layer = add(root.read_bytes(), "application/vnd.oci.image.layer.v1.tar+gzip")
    diff_id = hashlib.sha256(gzip.decompress(root.read_bytes())).hexdigest()
    manifests = []
    for architecture in MACHINES:
        platform = {"architecture": architecture, "os": "linux"}
        config = {
            **platform,
            "config": {"Env": BASE_ENVIRONMENT},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]},
        }
        kind = "application/vnd.oci.image.config.v1+json"
        manifest = {
            "schemaVersion": 2,
            "config": add(json.dumps(config).encode(), kind),
            "layers": [layer],
        }
        kind = "application/vnd.oci.image.manifest.v1+json"
        manifests.append({**add(json.dumps(manifest).encode(), kind), "platform": platform})
    index = {"schemaVersion": 2, "manifests": manifests}
    kind = "application/vnd.oci.image.index.v1+json"
    top = add(json.dumps(index).encode(), kind)
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return folder


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheels of the installed packages for this architecture, and empty ones for the other."""
    folder = tmp_path_factory.mktemp("wheels")
    tag = f"cp{PYTHON.replace('.', '')}"
    for package in (np, httptools, xxhash):
        name, home = package.__name__, Path(package.__file__ or "").parent
        siblings = [home, home.with_name(f"{name}.libs")]
        for machine in MACHINES.values():
            wheel = folder / f"{name}-{version(name)}-{tag}-{tag}-manylinux_2_28_{machine}.whl"
            with zipfile.ZipFile(wheel, "w") as archive:
                if machine != os.uname().machine:
                    archive.writestr(f"{name}/__init__.py", "")
                    continue
                for file in (each for sibling in siblings for each in sibling.rglob("*") if each.is_file()):
                    if "/tests/" not in str(file) and "__pycache__" not in str(file):
                        archive.write(file, file.relative_to(home.parent))
    return folder


def spec(tiny: TinyPartition, base: Path, wheels: Path, *architectures: str, **changes: Any) -> ImageSpec:
    own = next(name for name, machine in MACHINES.items() if machine == os.uname().machine)
    settings: dict[str, Any] = {
        "partition": tiny.folder,
        "base": base,
        "architectures": architectures or [own],
        "tag": TAG,
        "wheels": wheels,
        "python": PYTHON,
    }
    return ImageSpec(**{**settings, **changes})


def image_files(image: Image, manifest: Any) -> dict[str, bytes]:
    """The regular files of an image's layers, without the base's, by their paths."""
    files: dict[str, bytes] = {}
    for layer in manifest["layers"][1:]:
        with tarfile.open(fileobj=io.BytesIO(image.blob(layer))) as archive:
            files |= {entry.name: archive.extractfile(entry).read() for entry in archive if entry.isfile()}  # type: ignore[union-attr]
    return files


def ignore(_: str) -> None:
    pass


def test_a_function_runs_from_the_image(
    tiny: TinyPartition, root: Path, wheels: Path, tmp_path: Path
) -> None:
    digest = write_image(spec(tiny, root, wheels), tmp_path / "image.tar", ignore)
    image = Image.read(tmp_path / "image.tar")
    assert image.top["digest"] == digest
    assert image.top["annotations"] == {
        "org.opencontainers.image.ref.name": TAG,
        "io.containerd.image.name": TAG,
    }
    (manifest,) = image.manifests()
    image.unpack(manifest, tmp_path / "root")
    process = image.config(manifest)["config"]
    assert process["User"] == "10001:10001"
    assert process["Cmd"] == [f"python{PYTHON}", "-m", "functions.expert"]
    assert (tmp_path / "root" / "etc" / "os-release").read_text() == "base"
    environment = dict(setting.split("=", 1) for setting in process["Env"])
    home = tmp_path / "root" / process["WorkingDir"].lstrip("/")
    served = tmp_path / "root" / environment["FAASMOE_PARTITION"].lstrip("/")
    packages = tmp_path / "root" / environment["PYTHONPATH"].lstrip("/")
    name = tiny.functions[0]
    with expert_process(served, name, sources=home, PYTHONPATH=str(packages)) as function:
        invocation = tiny.invocation(name)
        tiny.check(invocation, function.invoke(invocation).output)
        loaded = {mapped.path for mapped in psutil.Process(function.process.pid).memory_maps()}
        libraries = [path for path in loaded if "numpy" in path or "kernels" in path]
        assert libraries
        assert all(path.startswith(str(tmp_path)) for path in libraries)


def test_the_same_input_gives_the_same_digest(
    tiny: TinyPartition, layout: Path, wheels: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny.folder, tmp_path / "elsewhere")
    for file in copy.rglob("*"):
        os.utime(file, (1, 1))
    first = write_image(spec(tiny, layout, wheels, "amd64", "arm64"), tmp_path / "1.tar", ignore)
    again = spec(tiny, layout, wheels, "amd64", "arm64", partition=copy)
    assert write_image(again, tmp_path / "2.tar", ignore) == first
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "2.tar").read_bytes()


def test_each_block_is_a_layer_that_all_platforms_share(
    tiny: TinyPartition, layout: Path, wheels: Path, tmp_path: Path
) -> None:
    write_image(spec(tiny, layout, wheels, "amd64", "arm64"), tmp_path / "image.tar", ignore)
    image = Image.read(tmp_path / "image.tar")
    manifests = image.manifests()
    assert [image.config(each)["architecture"] for each in manifests] == ["amd64", "arm64"]
    contents = []
    for manifest in manifests:
        found = {}
        for layer in manifest["layers"][1:]:
            with tarfile.open(fileobj=io.BytesIO(image.blob(layer))) as archive:
                files = [entry for entry in archive if entry.isfile()]
                assert {(entry.uid, entry.gid, entry.mtime) for entry in files} == {(10001, 10001, 0)}
                found[layer["digest"]] = {entry.name for entry in files}
        contents.append(found)
    blocks = [{f"home/app/partition/{block.file}"} for block in tiny.manifest.blocks]
    for found in contents:
        assert [files for files in found.values() if files in blocks] == blocks
    shared = contents[0].keys() & contents[1].keys()
    assert len(shared) >= len(blocks) + 1
    environment = image.config(manifests[0])["config"]["Env"]
    assert "PATH=/usr/local/bin:/usr/bin" in environment
    assert [each for each in environment if each.startswith("PYTHONPATH=")] == [
        "PYTHONPATH=/home/app/packages"
    ]


@pytest.mark.parametrize("architecture", MACHINES)
def test_the_extensions_are_compiled_for_the_architecture(
    tiny: TinyPartition, layout: Path, wheels: Path, tmp_path: Path, architecture: str
) -> None:
    machine = MACHINES[architecture]
    if machine != os.uname().machine and not shutil.which(cross_compiler(architecture)):
        pytest.skip(f"there is no {cross_compiler(architecture)}")
    said: list[str] = []
    write_image(spec(tiny, layout, wheels, architecture), tmp_path / "image.tar", said.append)
    image = Image.read(tmp_path / "image.tar")
    files = image_files(image, image.manifests()[0])
    suffix = sysconfig.get_config_var("EXT_SUFFIX").replace(os.uname().machine, machine)
    assert extension_sources()
    for source in extension_sources():
        folder = f"home/app/functions/{source.parts[0]}"
        extension = files[f"{folder}/_{source.stem}{suffix}"]
        assert extension[:4] == b"\x7fELF"
        assert int.from_bytes(extension[18:20], "little") == ELF_MACHINES[machine]
    assert not any("NumPy" in line for line in said)


def test_without_a_compiler_for_the_architecture_functions_compute_with_numpy(
    tiny: TinyPartition, layout: Path, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    other = next(name for name, machine in MACHINES.items() if machine != os.uname().machine)
    said: list[str] = []
    write_image(spec(tiny, layout, wheels, other), tmp_path / "image.tar", said.append)
    image = Image.read(tmp_path / "image.tar")
    assert not [name for name in image_files(image, image.manifests()[0]) if name.endswith(".so")]
    assert (
        f"linux/{other}: functions compute with NumPy, which is slow: "
        f"there is no {cross_compiler(other)} here" in said
    )


def test_a_compiler_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = next(name for name, machine in MACHINES.items() if machine != os.uname().machine)
    compiler = tmp_path / cross_compiler(other)
    compiler.write_text("#!/bin/sh\necho 'gated_ffn.c:7: fatal error: Python.h: No such file' >&2; exit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ConfigError, match=rf"cannot compile .*\.c for {other}: .*Python\.h: No such file"):
        compiled_extensions(other, tmp_path)


def test_an_oci_archive_can_be_the_base(
    tiny: TinyPartition, layout: Path, wheels: Path, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "base.tar", "w") as archive:
        archive.add(layout, ".")
    digests = {
        write_image(spec(tiny, base, wheels, "amd64"), tmp_path / "image.tar", ignore)
        for base in (layout, tmp_path / "base.tar")
    }
    assert len(digests) == 1


def test_errors_name_the_problem(tiny: TinyPartition, root: Path, wheels: Path, tmp_path: Path) -> None:
    def error(*options: object) -> str:
        output = tmp_path / "image.tar"
        message = error_line(faasmoe("image", tiny.folder, "-o", output, *options))
        assert list(tmp_path.glob("image*")) == []
        return message

    (tmp_path / "text").write_text("no archive")
    assert "is no OCI layout and no archive" in error("--base", tmp_path / "text", "--wheels", wheels)
    assert "has 0 wheels of numpy" in error("--base", root, "--wheels", tmp_path)
    both = ("--architecture", "amd64,arm64")
    assert "is one machine's file system" in error("--base", root, "--wheels", wheels, *both)
    assert "no images for 'mips'" in error("--base", root, "--wheels", wheels, "--architecture", "mips")
    with tarfile.open(tmp_path / "bare.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("etc/passwd"))
    assert f"has no Python {PYTHON}, but no Python at all" in error(
        "--base", tmp_path / "bare.tar", "--wheels", wheels
    )


def test_the_command_names_the_image_like_deploy(
    tiny: TinyPartition, root: Path, wheels: Path, tmp_path: Path
) -> None:
    output = tmp_path / "image.tar"
    options = ("--base", root, "--wheels", wheels, "--image-prefix", "localhost:5000/", "-o", output)
    result = faasmoe("image", tiny.folder, *options)
    assert result.exit_code == 0, result.output
    assert f"{output}: localhost:5000/{tiny.manifest.image}, sha256:" in result.output
    skopeo = shutil.which("skopeo")
    if skopeo:
        inspected = subprocess.run(
            [skopeo, "inspect", f"oci-archive:{output}"], capture_output=True, text=True, check=True
        )
        assert json.loads(inspected.stdout)["Os"] == "linux"
