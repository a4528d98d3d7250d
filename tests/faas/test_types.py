"""The message types read and write JSON as OpenFaaS and faas-cli do."""

from datetime import UTC, datetime
from typing import Any

import pytest

from control_plane.faas.types import (
    FunctionDeployment,
    FunctionStatus,
    FunctionUsage,
    ScaleServiceRequest,
    Secret,
)

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


def test_missing_and_null_fields_are_empty() -> None:
    nulls = {"envVars": None, "labels": None, "secrets": None, "limits": None}
    function = FunctionDeployment.from_json({"service": "figlet", "image": "figlet", **nulls})
    assert function == FunctionDeployment("figlet", "figlet")
    assert function.to_json() == {"service": "figlet", "image": "figlet"}


def test_a_status_of_a_go_gateway_is_read() -> None:
    """Go leaves out zeros and writes nanoseconds."""
    status = FunctionStatus.from_json(
        {"name": "figlet", "image": "figlet", "createdAt": "2026-05-01T10:11:12.123456789Z", "replicas": 1}
    )
    assert (status.name, status.deployment.image) == ("figlet", "figlet")
    assert (status.replicas, status.available_replicas, status.invocation_count) == (1, 1, 0)
    assert status.created_at == datetime(2026, 5, 1, 10, 11, 12, 123456, tzinfo=UTC)


@pytest.mark.parametrize(
    ("counts", "available"),
    [({"replicas": 1}, 1), ({"replicas": 1, "availableReplicas": 0}, 0), ({"availableReplicas": None}, 0)],
)
def test_replicas_are_available_unless_the_gateway_denies_it(counts: dict[str, Any], available: int) -> None:
    """faasd lists no `availableReplicas`."""
    assert FunctionStatus.from_json({"name": "f", **counts}).available_replicas == available


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "1"])
def test_usage_is_a_number(value: object) -> None:
    with pytest.raises(ValueError, match="totalMemoryBytes: must be a number, zero or more"):
        FunctionStatus.from_json({"name": "f", "usage": {"totalMemoryBytes": value}})


def test_a_status_is_written_as_it_was_read() -> None:
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
        ({"service": 1}, "service: must be a string"),
        ({"envVars": ["a"]}, "envVars: must be an object"),
        ({"labels": {"a": 1}}, r"labels\[...\]: must be a string"),
        ({"secrets": [1]}, r"secrets\[0\]: must be a string"),
        ({"readOnlyRootFilesystem": "yes"}, "readOnlyRootFilesystem: must be true or false"),
        ({"limits": "1G"}, "limits: must be an object"),
    ],
)
def test_an_error_names_the_field_with_the_wrong_type(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FunctionDeployment.from_json(DEPLOYMENT | change)


@pytest.mark.parametrize("replicas", [-1, 1.5, "1", True, 2**63, 1e300])
def test_replicas_are_a_whole_number(replicas: object) -> None:
    with pytest.raises(ValueError, match="replicas: must be a whole number, zero or more"):
        ScaleServiceRequest.from_json({"serviceName": "figlet", "replicas": replicas})


def test_the_value_of_a_secret_is_text_or_base64_and_stays_secret() -> None:
    assert Secret.from_json({"name": "key", "value": "schön"}).value == "schön".encode()
    secret = Secret.from_json({"name": "key", "rawValue": "AP8="})
    assert secret.value == b"\x00\xff"
    assert secret.to_json() == {"name": "key"}
    assert "xff" not in repr(secret)


@pytest.mark.parametrize("value", [3, "A", "AP8"])
def test_a_raw_value_that_is_not_base64_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="rawValue: must be base64"):
        Secret.from_json({"name": "key", "rawValue": value})


def test_numbers_and_times_are_read_leniently() -> None:
    """Whole numbers may be floats, and an empty time is none; a time needs its zone."""
    status = FunctionStatus.from_json({"name": "f", "replicas": 1.0, "createdAt": "", "usage": {"cpu": None}})
    assert (status.replicas, status.created_at, status.usage) == (1, None, FunctionUsage(0.0, 0.0))
    for time in ("2026-05-01T10:11:12", "yesterday", 5):
        with pytest.raises(ValueError, match="createdAt: must be an RFC 3339 time"):
            FunctionStatus.from_json({"name": "f", "createdAt": time})


@pytest.mark.parametrize("data", [None, [], "figlet", 5])
def test_only_an_object_is_a_message(data: object) -> None:
    for message in (FunctionDeployment, FunctionStatus, Secret):
        with pytest.raises(ValueError, match="must be an object"):
            message.from_json(data)
