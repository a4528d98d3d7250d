"""A partition as OpenFaaS deploys it: `stack.yml` for faas-cli, and the same as JSON for a gateway.

Keys as in `stack/schema.go` of https://github.com/openfaas/go-sdk, which faas-cli parses with (it ignores
keys that it does not know), and `types/function_deployment.go` of https://github.com/openfaas/faas-provider.
"""

import json
from typing import Any

from control_plane.deployment.image.contents import SOURCES
from control_plane.deployment.image.template import TEMPLATE
from control_plane.partition.manifest import Manifest
from control_plane.partition.partition_files import Block

FUNCTION_VARIABLE = "FAASMOE_FUNCTION"
"""The environment variable that says which block a function serves: all else is the same for all."""

MODEL_ANNOTATION = "faasmoe.model"
"""Tells the partition's fingerprint."""

IDLE_EXIT_VARIABLE = "FAASMOE_IDLE_EXIT"
"""The one that says after how many idle seconds a function's process ends by itself."""

_MIB = 1 << 20
_PROCESS_MIB = 128
"""The process itself, and the calls that it holds at a time."""

# One replica: a second copy of the weights is what sharing experts is to avoid.
_LABELS = {"com.openfaas.scale.zero": "true", "com.openfaas.scale.min": "1", "com.openfaas.scale.max": "1"}


def deployments(
    manifest: Manifest, image_prefix: str = "", idle_exit: int | None = None
) -> list[dict[str, Any]]:
    """For each function, the body of `POST /system/functions`.

    `image_prefix` is a registry's; `idle_exit` the seconds without a call after which a function ends itself.
    """
    return [
        {
            "service": block.function,
            "image": image_prefix + manifest.image,
            "envVars": _environment(block, idle_exit),
            "labels": dict(_LABELS),
            "annotations": _annotations(manifest),
            "limits": {"memory": _memory_limit(block)},
        }
        for block in manifest.blocks
    ]


def stack_yaml(
    manifest: Manifest,
    gateway_url: str,
    handler: str,
    image_prefix: str = "",
    idle_exit: int | None = None,
) -> str:
    """The stack.yml of a partition, to be used in the folder that holds `template/` and `functions/`.

    `handler` is the partition's folder as seen from there. The first function builds the image that all use.
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
{_mapping(_LABELS)}
  annotations:
{_mapping(_annotations(manifest))}

functions:
"""
    first, *others = manifest.blocks
    built = _function(first, idle_exit, "\n    skip_build: false")
    return head + built + "".join(_function(block, idle_exit) for block in others)


def _annotations(manifest: Manifest) -> dict[str, str]:
    # Kubernetes asks there (in the editions that can be told where) before it sends calls to a pod.
    return {MODEL_ANNOTATION: manifest.fingerprint, "com.openfaas.ready.http.path": "/_/ready"}


def _environment(block: Block, idle_exit: int | None) -> dict[str, str]:
    ends = {} if idle_exit is None else {IDLE_EXIT_VARIABLE: str(idle_exit)}
    return {FUNCTION_VARIABLE: block.function, **ends}


def _function(block: Block, idle_exit: int | None, build: str = "") -> str:
    variables = _environment(block, idle_exit).items()
    environment = "\n".join(f"      {name}: {_quoted(value)}" for name, value in variables)
    return f"""\
  {block.function}:
    <<: *expert{build}
    environment:
{environment}
    limits:
      memory: {_memory_limit(block)}
"""


def _memory_limit(block: Block) -> str:
    """The whole block resident, and what the process itself needs."""
    return f"{-(-block.nbytes // _MIB) + _PROCESS_MIB}Mi"


def _mapping(values: dict[str, str]) -> str:
    return "\n".join(f"    {key}: {_quoted(value)}" for key, value in values.items())


def _quoted(value: str) -> str:
    """A YAML string, whatever it looks like: `true` and `12e34` would be read as other types."""
    return json.dumps(value)
