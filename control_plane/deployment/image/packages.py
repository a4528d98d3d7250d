"""The packages that a function imports, unpacked from their wheels for some machine."""

import platform
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from control_plane.errors import ConfigError

MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
"""Architectures, by their names in images, as wheels call them."""
PLATFORMS = ("manylinux_2_28", "manylinux_2_17", "manylinux2014")
DOWNLOAD_SECONDS = 600


def own_architecture() -> str | None:
    """This machine's, if images are made for it."""
    return next((name for name, machine in MACHINES.items() if machine == platform.machine()), None)


def download(names: Sequence[str], architecture: str, python: str, folder: Path) -> list[Path]:
    """The wheels of these packages in the versions that are installed here. Raises `ConfigError`."""
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
    """Those in a folder that are for this machine, one for each package. Raises `ConfigError`."""
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
    """All files of the wheels, by their paths below `target`. Raises `ConfigError` for a damaged one."""
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
