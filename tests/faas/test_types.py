"""The wire types against JSON as OpenFaaS and faas-cli write it."""

from datetime import UTC, datetime
from typing import Any

import pytest

from control_plane.faas.types import FunctionDeployment, FunctionStatus, ScaleServiceRequest, Secret

DEPLOYMENT = {
    "service": "figlet",
    "image": "functions/figlet:0.13.0",
    "namespace": "openfaas-fn",
    "envProcess": "figlet",
    "envVars": {"write_debug": "true"},
    "constraints": ["node.platform.os == linux"],
    "secrets": ["key"],
    "labels": {"com.openfaas.scale.min": "1"},
    "annotations": {"topic": "awesome-kafka-topic"},
    "limits": {"memory": "128M", "cpu": "0.01"},
    "requests": {"memory": "64M"},
    "readOnlyRootFilesystem": True,
}


def test_a_deployment_keeps_all_its_fields() -> None:
    assert FunctionDeployment.from_json(DEPLOYMENT).to_json() == DEPLOYMENT


def test_what_is_left_out_or_null_is_empty() -> None:
    nulls = {"envVars": None, "labels": None, "secrets": None, "limits": None}
    function = FunctionDeployment.from_json({"service": "figlet", "image": "figlet", **nulls})
    assert function == FunctionDeployment("figlet", "figlet")
    assert function.to_json() == {"service": "figlet", "image": "figlet"}


def test_a_status_of_a_go_gateway_is_read() -> None:
    """Go leaves out zeros, and writes nanoseconds."""
    status = FunctionStatus.from_json(
        {"name": "figlet", "image": "figlet", "createdAt": "2026-05-01T10:11:12.123456789Z", "replicas": 1}
    )
    assert (status.name, status.deployment.image) == ("figlet", "figlet")
    assert (status.replicas, status.available_replicas, status.invocation_count) == (1, 0, 0)
    assert status.created_at == datetime(2026, 5, 1, 10, 11, 12, 123456, tzinfo=UTC)


def test_a_status_survives_the_wire() -> None:
    described = {key: value for key, value in DEPLOYMENT.items() if key != "service"}
    counted = {
        "name": "figlet",
        "replicas": 0,
        "availableReplicas": 0,
        "invocationCount": 1337,
        "createdAt": "2026-05-01T10:11:12+00:00",
        "usage": {"cpu": 12.5, "totalMemoryBytes": 1e6},
    }
    assert FunctionStatus.from_json(described | counted).to_json() == described | counted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"service": 1}, "service: expected str"),
        ({"envVars": ["a"]}, "envVars: expected dict"),
        ({"labels": {"a": 1}}, "labels: expected an object whose values are strings"),
        ({"secrets": [1]}, "secrets: expected a list of strings"),
        ({"readOnlyRootFilesystem": "yes"}, "readOnlyRootFilesystem: expected bool"),
        ({"limits": "1G"}, "resources: expected a JSON object"),
    ],
)
def test_a_wrong_type_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FunctionDeployment.from_json(DEPLOYMENT | change)


@pytest.mark.parametrize("replicas", [-1, 1.5, "1", True])
def test_replicas_are_a_whole_number(replicas: object) -> None:
    with pytest.raises(ValueError, match="replicas: expected"):
        ScaleServiceRequest.from_json({"serviceName": "figlet", "replicas": replicas})


def test_a_secrets_value_comes_as_text_or_as_base64_and_is_not_shown() -> None:
    assert Secret.from_json({"name": "key", "value": "schön"}).value == "schön".encode()
    secret = Secret.from_json({"name": "key", "rawValue": "AP8="})
    assert secret.value == b"\x00\xff"
    assert secret.to_json() == {"name": "key"}
    assert "xff" not in repr(secret)
