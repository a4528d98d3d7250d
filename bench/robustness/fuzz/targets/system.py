"""The embedded gateway's own API, `/system`: functions, their scale and logs, and secrets."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from yarl import URL

from bench.robustness.fuzz.support import model
from bench.robustness.fuzz.support.json_mutation import mutated_json
from bench.robustness.fuzz.support.mutation import mutated
from bench.robustness.fuzz.support.servers import ask, entered
from bench.robustness.fuzz.support.target import Target
from bench.robustness.fuzz.targets.api import request
from bench.support import processes
from control_plane.faas.connection import Address
from control_plane.partition.manifest import Manifest

Call = tuple[str, str, Any]
"""Method, path with query, and the body as a JSON document."""


def example_calls(manifest: Manifest) -> list[Call]:
    """Valid calls. Few of them start or end a process, which takes longer than hundreds of others."""
    name = manifest.blocks[0].function
    deployment = {
        "service": name,
        "image": manifest.image,
        "namespace": "openfaas-fn",
        "envProcess": "",
        "envVars": {"FAASMOE_FUNCTION": name, "FAASMOE_THREADS": "1"},
        "labels": {"com.openfaas.scale.min": "0", "com.openfaas.scale.zero": "true"},
        "annotations": {"topic": "x"},
        "secrets": ["fuzz"],
        "constraints": ["a == b"],
        "limits": {"memory": "128Mi", "cpu": "500m"},
        "requests": None,
        "readOnlyRootFilesystem": True,
    }
    secret = {"name": "fuzz", "namespace": "openfaas-fn", "value": "text", "rawValue": "AAEC"}
    return [
        ("POST", "/system/functions", {**deployment, "secrets": []}),
        ("POST", "/system/functions", {**deployment, "service": "other"}),
        ("PUT", "/system/functions", {**deployment, "service": "other"}),
        ("DELETE", "/system/functions", {"functionName": "other", "namespace": "openfaas-fn"}),
        ("GET", "/system/functions?namespace=openfaas-fn", None),
        ("GET", f"/system/function/{name}?namespace=openfaas-fn&usage=1", None),
        ("POST", f"/system/scale-function/{name}", {"serviceName": name, "replicas": 1, "namespace": ""}),
        ("POST", "/system/scale-function/other", {"serviceName": "other", "replicas": 0}),
        ("GET", f"/system/logs?name={name}&tail=5&since=2026-01-02T03:04:05.123456789Z&instance=x", None),
        ("GET", f"/system/logs?name={name}&namespace=openfaas-fn", None),
        ("POST", "/system/secrets", secret),
        ("PUT", "/system/secrets", secret),
        ("DELETE", "/system/secrets", {"name": "fuzz"}),
        ("GET", "/system/secrets", None),
        ("GET", "/system/info", None),
        ("GET", "/system/namespaces", None),
    ]


@contextmanager
def system(folder: Path) -> Iterator[Target]:
    """`faasmoe gateway`, over HTTP."""
    calls = example_calls(model.manifest(folder, "bf16"))

    def make(random: Random) -> bytes:
        method, path, document = random.choice(calls)
        if random.random() < 0.2:
            changed = mutated(path.encode(), random)
            # A space or a line break would end the target.
            path = "/" + bytes(byte for byte in changed if 33 <= byte < 127).decode().lstrip("/")
        body = b"" if document is None else mutated_json(document, random)
        return request(method, path, body)

    with entered(processes.running("gateway", folder / "bf16", "--port", "0")) as (_, address):
        url = URL(address)
        peer = Address(url.host or "", url.port or 0)
        yield Target(make, lambda data: ask(peer, data))
