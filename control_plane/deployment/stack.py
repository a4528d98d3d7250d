"""The deployment of a partition's functions: for a gateway's API, and as `stack.yml` for faas-cli.

The keys of stack.yml are those of `stack/schema.go` in https://github.com/openfaas/go-sdk, with which
faas-cli parses it (and ignores unknown keys).
"""

import hashlib
import json
from collections.abc import Mapping
from enum import Enum

from msgspec.structs import replace

from control_plane.deployment.image.contents import MODEL_ANNOTATION, SOURCES
from control_plane.deployment.image.template import TEMPLATE
from control_plane.faas.types import FunctionDeployment, FunctionResources
from control_plane.partition.manifest import Manifest
from control_plane.partition.partition_files import Block
from functions.contract.process import FUNCTION_VARIABLE, IDLE_EXIT_VARIABLE, READY_PATH
from functions.contract.secret import OPEN_VARIABLE, SECRET_NAME

DIGEST_ANNOTATION = "faasmoe.deployment"
"""The digest of a deployment. Other fields cannot be compared: providers add to them, and leave some out."""

_MIB = 1 << 20
_PROCESS_MIB = 128
"""Memory of a function's process and its concurrent calls, without weights."""

_LABELS = {
    "com.openfaas.scale.zero": "true",
    # One replica: a second one would hold a second copy of the weights.
    "com.openfaas.scale.min": "1",
    "com.openfaas.scale.max": "1",
    # deploy/kubernetes/control-plane.yaml has a network policy for these functions.
    "app.kubernetes.io/part-of": "faasmoe",
}


class FunctionCallers(Enum):
    """Who may call the functions."""

    WITH_SECRET = "with secret"
    ANYBODY = "anybody"
    ON_LOOPBACK = "on loopback"
    """Whoever is on the machine: functions without the secret listen there alone."""


def deployments(
    manifest: Manifest,
    image_prefix: str = "",
    idle_exit: int | None = None,
    callers: FunctionCallers = FunctionCallers.ON_LOOPBACK,
) -> list[FunctionDeployment]:
    """The deployment of each function.

    `image_prefix` is a registry with a slash at its end. `idle_exit` is the number of seconds without a call
    after which a function exits by itself.
    """
    return [
        _with_digest(
            FunctionDeployment(
                service=block.function,
                image=image_prefix + manifest.image,
                env_vars=_environment(block, idle_exit, callers),
                secrets=(SECRET_NAME,) if callers is FunctionCallers.WITH_SECRET else (),
                labels=_LABELS,
                annotations=_annotations(manifest),
                limits=FunctionResources(memory=_memory_limit(block)),
            )
        )
        for block in manifest.blocks
    ]


def stack_yaml(
    manifest: Manifest,
    gateway_url: str,
    handler: str,
    image_prefix: str = "",
    idle_exit: int | None = None,
    callers: FunctionCallers = FunctionCallers.WITH_SECRET,
) -> str:
    """The stack.yml of a partition, for a folder that also contains `template/` and `functions/`.

    `handler` is the partition's folder, relative to that folder. The image that all functions share is built
    for the first one.
    """
    head = f"""\
version: "1.0"
provider:
  name: openfaas
  gateway: {_quoted(gateway_url)}
configuration:
  copy:
    - {SOURCES}

x-expert: &expert
  lang: {TEMPLATE}
  handler: {_quoted(handler)}
  image: {image_prefix}{manifest.image}
  skip_build: true
  platforms: linux/amd64,linux/arm64
  labels:
{_mapping(_LABELS, 4)}

functions:
"""
    first, *others = deployments(manifest, image_prefix, idle_exit, callers)
    return head + _function(first, "\n    skip_build: false") + "".join(map(_function, others))


def _annotations(manifest: Manifest) -> dict[str, str]:
    # The readiness probe of OpenFaaS on Kubernetes, in the editions that support the annotation.
    return {MODEL_ANNOTATION: manifest.fingerprint, "com.openfaas.ready.http.path": READY_PATH}


def _environment(block: Block, idle_exit: int | None, callers: FunctionCallers) -> dict[str, str]:
    ends = {} if idle_exit is None else {IDLE_EXIT_VARIABLE: str(idle_exit)}
    is_open = {OPEN_VARIABLE: "1"} if callers is FunctionCallers.ANYBODY else {}
    return {FUNCTION_VARIABLE: block.function, **ends, **is_open}


def _function(deployment: FunctionDeployment, build: str = "") -> str:
    assert deployment.limits is not None
    secrets = f"    secrets: [{', '.join(deployment.secrets)}]\n" if deployment.secrets else ""
    return f"""\
  {deployment.service}:
    <<: *expert{build}
    environment:
{_mapping(deployment.env_vars, 6)}
    annotations:
{_mapping(deployment.annotations, 6)}
{secrets}    limits:
      memory: {deployment.limits.memory}
"""


def _memory_limit(block: Block) -> str:
    """Enough memory for the whole block and the process."""
    return f"{-(-block.nbytes // _MIB) + _PROCESS_MIB}Mi"


def _with_digest(deployment: FunctionDeployment) -> FunctionDeployment:
    """Add the digest of all fields. The image's name changes with the release and the weights."""
    content = json.dumps(deployment.to_json(), sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()
    return replace(deployment, annotations={**deployment.annotations, DIGEST_ANNOTATION: digest})


def _mapping(values: Mapping[str, str], indent: int) -> str:
    return "\n".join(f"{' ' * indent}{key}: {_quoted(value)}" for key, value in values.items())


def _quoted(value: str) -> str:
    """A quoted YAML string: unquoted, `true` and `12e34` would be read as other types."""
    return json.dumps(value)
