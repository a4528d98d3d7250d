"""The OpenFaaS labels that set how a function scales.

See https://docs.openfaas.com/architecture/autoscaling/
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from control_plane.errors import ConfigError
from control_plane.quantities import parse_duration

MIN_REPLICAS = "com.openfaas.scale.min"
SCALE_TO_ZERO = "com.openfaas.scale.zero"
IDLE_DURATION = "com.openfaas.scale.zero-duration"


@dataclass(frozen=True)
class ScalingLabels:
    """How a function scales. `idle_after` is in seconds; None keeps an idle function running."""

    min_replicas: int
    idle_after: float | None

    @classmethod
    def parse(cls, labels: Mapping[str, str], default_idle_after: float) -> Self:
        """Read a function's labels. Raises ConfigError for values that this gateway does not support."""
        duration = labels.get(IDLE_DURATION)
        try:
            idle_after = default_idle_after if duration is None else parse_duration(duration)
        except ConfigError as error:
            raise ConfigError(f"{IDLE_DURATION}: {error}") from error
        may_scale_to_zero = labels.get(SCALE_TO_ZERO, "false").lower() == "true"
        return cls(
            min_replicas=check_replicas(labels.get(MIN_REPLICAS, "1")),
            idle_after=idle_after if may_scale_to_zero else None,
        )


def check_replicas(replicas: str | int) -> int:
    """A number of replicas. Raises ConfigError unless it is 0 or 1.

    A second process would compute with the same weights on the same cores, so calls would not be faster.
    """
    if str(replicas) not in ("0", "1"):
        raise ConfigError(f"this gateway runs 0 or 1 replicas of a function, not {replicas}")
    return int(replicas)
