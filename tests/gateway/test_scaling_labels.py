"""Labels set how a function scales."""

import pytest

from control_plane.errors import ConfigError
from control_plane.gateway.provider.scaling_labels import ScalingLabels, check_replicas


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({}, ScalingLabels(1, None)),
        ({"com.openfaas.scale.min": "0"}, ScalingLabels(0, None)),
        ({"com.openfaas.scale.max": "20"}, ScalingLabels(1, None)),
        ({"com.openfaas.scale.zero": "true"}, ScalingLabels(1, 900.0)),
        ({"com.openfaas.scale.zero": "false"}, ScalingLabels(1, None)),
        ({"com.openfaas.scale.zero-duration": "5m"}, ScalingLabels(1, None)),
        (
            {"com.openfaas.scale.zero": "true", "com.openfaas.scale.zero-duration": "5m"},
            ScalingLabels(1, 300.0),
        ),
    ],
)
def test_labels_set_scaling(labels: dict[str, str], expected: ScalingLabels) -> None:
    assert ScalingLabels.parse(labels, default_idle_after=900.0) == expected


def test_the_error_names_a_label_that_is_not_a_duration() -> None:
    with pytest.raises(ConfigError, match=r"^com\.openfaas\.scale\.zero-duration: expected a duration"):
        ScalingLabels.parse({"com.openfaas.scale.zero-duration": "15"}, default_idle_after=900.0)


@pytest.mark.parametrize("replicas", ["2", "-1", "one", "", " 1", "1.0", 2])
def test_a_function_has_no_or_one_replica(replicas: str | int) -> None:
    with pytest.raises(ConfigError, match="0 or 1 replicas"):
        check_replicas(replicas)
