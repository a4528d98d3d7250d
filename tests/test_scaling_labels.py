"""Labels and durations, by cases."""

import pytest

from control_plane.errors import ConfigError
from control_plane.faas.embedded.scaling_labels import ScalingLabels, check_replicas, parse_duration


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
def test_labels_say_how_a_function_scales(labels: dict[str, str], expected: ScalingLabels) -> None:
    assert ScalingLabels.parse(labels, default_idle_after=900.0) == expected


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90.0), ("15m", 900.0), ("1h30m", 5400.0), ("1.5s", 1.5), ("250ms", 0.25)]
)
def test_durations_are_those_of_go(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "15", "m", "-5m", "5 m", "5m!", "1d", "0s"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a duration"):
        parse_duration(text)


@pytest.mark.parametrize("replicas", ["2", "-1", "one", "", " 1", "1.0", 2])
def test_a_function_has_no_or_one_replica(replicas: str | int) -> None:
    with pytest.raises(ConfigError, match="0 or 1 replicas"):
        check_replicas(replicas)
