"""The compiled extensions of the `functions` package: each FOLDER/csrc/NAME.c is the module FOLDER/_NAME.

This machine's were built when `faasmoe` was installed. Those of another architecture are cross-compiled, with
this Python's headers: they are the same on all 64-bit Linux systems.
"""

import shutil
import subprocess
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from control_plane.deployment.image.contents import source_folder
from control_plane.deployment.image.packages import MACHINES, own_architecture
from control_plane.errors import ConfigError

HEADERS = "kernels/csrc"
"""The folder of the headers that all extensions may include."""
OPTIONS = ("-O3", "-std=c11", "-pthread", "-fPIC", "-shared")
COMPILE_SECONDS = 300


def extension_sources() -> list[Path]:
    """The extensions' C files, relative to the `functions` package."""
    root = source_folder()
    return sorted(file.relative_to(root) for file in root.glob("*/csrc/*.c"))


def module_of(source: Path) -> Path:
    """The extension module's path without its suffix, relative to the `functions` package as `source` is."""
    return source.parent.parent / f"_{source.stem}"


def cross_compiler(architecture: str) -> str:
    """The name of the compiler for an architecture, as Debian and Fedora have it."""
    return f"{MACHINES[architecture]}-linux-gnu-gcc"


def compiled_extensions(architecture: str, work: Path) -> Mapping[str, Path]:
    """Extensions for an architecture by their paths in the `functions` package. Files are made in `work`.

    Empty if they were not built for this machine, or if there is no compiler for another.
    Raises `ConfigError` if the compiler fails.
    """
    if architecture == own_architecture():
        return _built_extensions()
    compiler = shutil.which(cross_compiler(architecture))
    return {} if compiler is None else _cross_compiled(compiler, architecture, work)


def include_options(architecture: str, work: Path) -> list[str]:
    """The compiler's options for finding the headers of all extensions, and Python's for the architecture.

    Python.h of Debian looks for another machine's pyconfig.h in a folder of its own. There is none, so `work`
    gets one with a copy of this machine's.
    """
    python = Path(sysconfig.get_path("include"))
    own, other = MACHINES[own_architecture() or architecture], MACHINES[architecture]
    settings = python.parent / f"{own}-linux-gnu" / python.name / "pyconfig.h"
    if settings.exists():
        copy = work / f"{other}-linux-gnu" / python.name / "pyconfig.h"
        copy.parent.mkdir(parents=True)
        shutil.copyfile(settings, copy)
    return [f"-I{folder}" for folder in (source_folder() / HEADERS, python, work)]


def _built_extensions() -> Mapping[str, Path]:
    """They need a C library at least as new as this machine's."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    names = (f"{module_of(source)}{suffix}" for source in extension_sources())
    return {name: file for name in names if (file := source_folder() / name).exists()}


def _cross_compiled(compiler: str, architecture: str, work: Path) -> Mapping[str, Path]:
    """They need a C library at least as new as the compiler's."""
    own = MACHINES[own_architecture() or architecture]
    suffix = str(sysconfig.get_config_var("EXT_SUFFIX")).replace(own, MACHINES[architecture])
    # -s: symbols would add the names of temporary files, and the same input shall give the same image.
    command = [compiler, *OPTIONS, "-s", *include_options(architecture, work)]
    compiled = {}
    for source in extension_sources():
        name = f"{module_of(source)}{suffix}"
        file = compiled[name] = work / Path(name).name
        _compile([*command, str(source_folder() / source), "-o", str(file), "-lm"], source, architecture)
    return compiled


def _compile(command: list[str], source: Path, architecture: str) -> None:
    problem = f"cannot compile {source} for {architecture}"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"{problem} within {COMPILE_SECONDS} s") from error
    except OSError as error:
        raise ConfigError(f"{problem}: {error}") from error
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or ["no reason given"]
        raise ConfigError(f"{problem}: {errors[0]}")
