"""The template from which faas-cli builds the image of a partition's functions.

faas-cli lays the template at the root of the build context, and the handler (the partition's folder) with
the sources of `functions/` in `function/`. The Dockerfile is written for one partition, because only then can
each block be a layer of its own: a block that changes is the only one that moves.
"""

import shutil
from importlib.metadata import requires
from pathlib import Path

import functions
from control_plane.errors import PartitionError
from control_plane.partition.manifest import Manifest
from functions.contract.process import DEFAULT_PORT, HOST_VARIABLE, PARTITION_VARIABLE

TEMPLATE = "faasmoe-expert"
SOURCES = "functions"
"""The package that runs in the image."""

MAX_BLOCK_LAYERS = 100
"""Docker allows 127 layers; blocks beyond this share one."""

_TEMPLATE_YML = f"""\
language: {TEMPLATE}
welcome_message: |
  The handler is a partition folder, and the stack file comes from `faasmoe stack`.
"""

_DOCKERIGNORE = """\
# The control plane's part of the partition, and what was compiled for another machine.
function/dense.safetensors
**/__pycache__
**/*.so
"""

_DOCKERFILE = """\
# syntax=docker/dockerfile:1
# Written by `faasmoe stack`: the image of all functions of one partition.

FROM python:3.11-slim AS kernel
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev
WORKDIR /kernel
COPY function/functions/kernels/csrc/ ./
RUN gcc -O3 -std=c11 -pthread -fPIC -shared $(python3-config --includes) gated_ffn.c \\
    -o _gated_ffn$(python3-config --extension-suffix) -lm

FROM python:3.11-slim
RUN pip install --no-cache-dir {requirements}
# A number, since Kubernetes cannot tell whether a user's name is root's.
RUN useradd --uid 10001 --create-home --home-dir /home/app app
USER 10001
WORKDIR /home/app

# --link: a layer depends on nothing below it, so one block that changes moves no other.
{blocks}
COPY --link --chown=10001 function/manifest.json partition/
COPY --link --chown=10001 function/functions/ functions/
COPY --link --chown=10001 --from=kernel /kernel/_gated_ffn*.so functions/kernels/

# No watchdog: the function is an HTTP server itself, and logs to its standard output.
ENV {host}=0.0.0.0 {partition}=/home/app/partition PYTHONUNBUFFERED=1
EXPOSE {port}
CMD ["python", "-m", "functions.expert"]
"""


def block_layers(manifest: Manifest) -> list[list[str]]:
    """The blocks' files by the layers that they are in: each in its own, as far as there may be so many."""
    files = [block.file for block in manifest.blocks]
    own, shared = files[: MAX_BLOCK_LAYERS - 1], files[MAX_BLOCK_LAYERS - 1 :]
    return [[file] for file in own] + ([shared] if shared else [])


def dockerfile(manifest: Manifest) -> str:
    """The Dockerfile, with one COPY and so one layer per block."""
    blocks = "\n".join(
        f"COPY --link --chown=10001 {' '.join(f'function/{file}' for file in files)} partition/blocks/"
        for files in block_layers(manifest)
    )
    return _DOCKERFILE.format(
        requirements=_requirements(),
        blocks=blocks,
        host=HOST_VARIABLE,
        partition=PARTITION_VARIABLE,
        port=DEFAULT_PORT,
    )


def write_template(manifest: Manifest, folder: Path) -> None:
    """Put into `folder` what faas-cli needs beside the stack file: `template/` and `functions/`, anew.

    Raises `PartitionError` when it cannot be written.
    """
    target = folder / "template" / TEMPLATE
    try:
        target.mkdir(parents=True, exist_ok=True)
        (target / "template.yml").write_text(_TEMPLATE_YML)
        (target / "Dockerfile").write_text(dockerfile(manifest))
        (target / ".dockerignore").write_text(_DOCKERIGNORE)
        _write_sources(folder / SOURCES)
    except OSError as error:
        raise PartitionError(f"cannot write the template in {folder}: {error}") from error


def _write_sources(target: Path) -> None:
    """Copy this release's function, unless that is where it runs from."""
    own = Path(functions.__path__[0])
    if target.exists() and target.samefile(own):
        return
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(own, target, ignore=shutil.ignore_patterns("__pycache__", "*.so"))


def required_packages() -> tuple[str, ...]:
    """The names of what a function imports beside the standard library."""
    return ("numpy", "httptools")


def _requirements() -> str:
    """The same, as this package requires it."""
    wanted = [name for name in requires("faasmoe") or [] if name.startswith(required_packages())]
    return " ".join(f'"{name}"' for name in wanted)
