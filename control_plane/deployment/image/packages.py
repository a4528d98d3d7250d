"""The packages that a function imports: their requirements, and their wheels for an architecture."""

import platform
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from importlib.metadata import requires, version
from pathlib import Path

from control_plane.errors import ConfigError

REQUIRED_PACKAGES = ("numpy", "httptools", "xxhash")
"""The packages that a function imports besides the standard library."""
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
"""Names of architectures in wheels, by their names in images."""
PLATFORMS = ("manylinux_2_28", "manylinux_2_17", "manylinux2014")
DOWNLOAD_SECONDS = 600


def requirements() -> list[str]:
    """Requirements for these packages, with the version limits of `faasmoe` itself."""
    return [name for name in requires("faasmoe") or [] if name.startswith(REQUIRED_PACKAGES)]


def own_architecture() -> str | None:
    """This machine's architecture, if images can be built for it."""
    return next((name for name, machine in MACHINES.items() if machine == platform.machine()), None)


def download(names: Sequence[str], architecture: str, python: str, folder: Path) -> list[Path]:
    """Download wheels of packages into `folder`, in the versions that are installed here.

    Raises `ConfigError` if pip fails or takes too long.
    """
    platforms = [f"--platform={platform}_{MACHINES[architecture]}" for platform in PLATFORMS]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--no-deps"]
    command += [*platforms, f"--python-version={python}", f"--dest={folder}"]
    command += [f"{name}=={version(name)}" for name in names]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"pip has not downloaded the wheels within {DOWNLOAD_SECONDS} s") from error
    if done.returncode:
        last = (done.stderr.strip() or "no reason given").splitlines()[-1]
        raise ConfigError(f"cannot download wheels for {architecture}: {last}; or give them with --wheels")
    return sorted(folder.glob("*.whl"))


def chosen(wheels: Path, names: Sequence[str], architecture: str, python: str) -> list[Path]:
    """The wheel of each package in a folder. Raises `ConfigError` unless there is exactly one of each."""
    tag, machine = f"cp{python.replace('.', '')}", MACHINES[architecture]
    fits = [
        file
        for file in sorted(wheels.glob("*.whl"))
        if file.stem.endswith("-any")
        or (f"-{tag}-" in file.name and "manylinux" in file.name and file.stem.endswith(machine))
    ]
    found = {name: [file for file in fits if file.name.startswith(f"{name}-")] for name in names}
    for name, files in found.items():
        if len(files) != 1:
            raise ConfigError(
                f"{wheels} has {len(files)} wheels of {name} for {architecture} and Python {python}, not one"
            )
    return [file for files in found.values() for file in files]


def unpacked(wheels: Sequence[Path], target: str) -> dict[str, bytes]:
    """All files of the wheels, by their paths below `target`. Raises `ConfigError` for a damaged wheel."""
    files: dict[str, bytes] = {}
    for wheel in wheels:
        try:
            with zipfile.ZipFile(wheel) as archive:
                files |= {
                    f"{target}/{name}": archive.read(name)
                    for name in archive.namelist()
                    if not name.endswith("/")
                }
        except (OSError, zipfile.BadZipFile) as error:
            raise ConfigError(f"cannot read the wheel {wheel}: {error}") from error
    return files
