"""The template from which faas-cli builds the image of a partition's functions.

faas-cli copies the template to the root of the build context, and the handler (the partition's folder) and
the sources of `functions/` to `function/`. The Dockerfile is written for one partition, because it has a COPY
for each block: a block that changes is then the only one that is pushed and pulled again.
"""

import shutil
from pathlib import Path

from control_plane.deployment.image.contents import SOURCES, block_layers, source_folder
from control_plane.deployment.image.extensions import HEADERS, OPTIONS, extension_sources, module_of
from control_plane.deployment.image.packages import requirements
from control_plane.errors import PartitionError
from control_plane.partition.manifest import Manifest
from functions.contract.process import DEFAULT_PORT, HOST_VARIABLE, PARTITION_VARIABLE

TEMPLATE = "faasmoe-expert"

_TEMPLATE_YML = f"""\
language: {TEMPLATE}
welcome_message: |
  The handler is a partition folder, and the stack file comes from `faasmoe stack`.
"""

_DOCKERIGNORE = """\
# The control plane's part of the partition, and files that were compiled for another machine.
function/dense.safetensors
**/__pycache__
**/*.so
"""

_DOCKERFILE = """\
# syntax=docker/dockerfile:1
# Written by `faasmoe stack`: the image of all functions of one partition.

FROM python:3.11-slim AS compiled
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev
{sources}
{extensions}

FROM python:3.11-slim
RUN pip install --no-cache-dir {requirements}
# A number, since Kubernetes cannot check that a user given by name is not root.
RUN useradd --uid 10001 --create-home --home-dir /home/app app
USER 10001
WORKDIR /home/app

# --link: a layer depends on nothing below it, so one block that changes moves no other.
{blocks}
COPY --link --chown=10001 function/manifest.json partition/
COPY --link --chown=10001 function/functions/ functions/
COPY --link --chown=10001 --from=compiled /compiled/ ./

# No watchdog: the function is an HTTP server itself, and logs to its standard output.
ENV {host}=0.0.0.0 {partition}=/home/app/partition PYTHONUNBUFFERED=1
EXPOSE {port}
CMD ["python", "-m", "functions.expert"]
"""


_SOURCE = "COPY function/functions/{folder}/ /functions/{folder}/"
_EXTENSION = """\
RUN mkdir -p /compiled/functions/{module.parent} && gcc {options} \\
    -I/functions/{headers} $(python3-config --includes) /functions/{source} \\
    -o /compiled/functions/{module}$(python3-config --extension-suffix) -lm"""


def dockerfile(manifest: Manifest) -> str:
    """The Dockerfile, with one COPY, and so one layer, per block."""
    blocks = "\n".join(
        f"COPY --link --chown=10001 {' '.join(f'function/{file}' for file in files)} partition/blocks/"
        for files in block_layers(manifest)
    )
    sources = extension_sources()
    options = {"options": " ".join(OPTIONS), "headers": HEADERS}
    extensions = [_EXTENSION.format(source=source, module=module_of(source), **options) for source in sources]
    return _DOCKERFILE.format(
        sources="\n".join(_SOURCE.format(folder=source.parent) for source in sources),
        extensions="\n".join(extensions),
        requirements=" ".join(f'"{each}"' for each in requirements()),
        blocks=blocks,
        host=HOST_VARIABLE,
        partition=PARTITION_VARIABLE,
        port=DEFAULT_PORT,
    )


def write_template(manifest: Manifest, folder: Path) -> None:
    """Write the folders that faas-cli needs next to the stack file: `template/` and `functions/`.

    Files of an earlier call are replaced. Raises `PartitionError` if they cannot be written.
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
    """Copy this release's `functions` package, unless it runs from there."""
    own = source_folder()
    if target.exists() and target.samefile(own):
        return
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(own, target, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
