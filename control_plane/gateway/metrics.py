"""The gateway's metrics, with the names that OpenFaaS' gateway uses.

See https://docs.openfaas.com/architecture/metrics/ for the names, and
https://prometheus.io/docs/instrumenting/exposition_formats/ for the format.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from control_plane.faas.types import DEFAULT_NAMESPACE

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass
class _Histogram:
    """Durations of the invocations of one function that ended with one status code."""

    buckets: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    seconds: float = 0.0

    def observe(self, seconds: float) -> None:
        self.buckets[bisect_left(BUCKETS_S, seconds)] += 1
        self.seconds += seconds

    def lines(self, labels: str) -> Iterator[str]:
        below = 0
        for bound, calls in zip((*BUCKETS_S, float("inf")), self.buckets, strict=True):
            below += calls
            le = "+Inf" if bound == float("inf") else f"{bound:g}"
            yield f'gateway_functions_seconds_bucket{{{labels},le="{le}"}} {below}'
        yield f"gateway_functions_seconds_sum{{{labels}}} {self.seconds}"
        yield f"gateway_functions_seconds_count{{{labels}}} {below}"


class GatewayMetrics:
    """Counts invocations by function and status code."""

    def __init__(self) -> None:
        self._started: Counter[str] = Counter()
        self._completed: defaultdict[tuple[str, int], _Histogram] = defaultdict(_Histogram)

    def start(self, function: str) -> None:
        self._started[function] += 1

    def complete(self, function: str, status: int, seconds: float) -> None:
        self._completed[function, status].observe(seconds)

    def render(self, replicas: Mapping[str, int]) -> str:
        """All metrics in the text format; `replicas` are the wanted replicas by function."""
        wanted = (f"gateway_service_count{{{_labels(name)}}} {n}" for name, n in replicas.items())
        started = (
            f"gateway_function_invocation_started{{{_labels(name)}}} {n}" for name, n in self._started.items()
        )
        lines = [
            "# TYPE gateway_function_invocation_started counter",
            *started,
            "# TYPE gateway_function_invocation_total counter",
            *self._totals(),
            "# TYPE gateway_functions_seconds histogram",
            *self._durations(),
            "# TYPE gateway_service_count gauge",
            *wanted,
        ]
        return "\n".join(lines) + "\n"

    def _totals(self) -> Iterator[str]:
        for (name, code), histogram in self._completed.items():
            yield f"gateway_function_invocation_total{{{_labels(name, code)}}} {sum(histogram.buckets)}"

    def _durations(self) -> Iterator[str]:
        for (name, code), histogram in self._completed.items():
            yield from histogram.lines(_labels(name, code))


def _labels(function: str, code: int | None = None) -> str:
    name = f'function_name="{function}.{DEFAULT_NAMESPACE}"'
    return name if code is None else f'{name},code="{code}"'
