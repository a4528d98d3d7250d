"""Results of `make bench-memory`: kept in a JSON file from run to run, printed as Markdown tables."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from control_plane.errors import ConfigError


@dataclass(frozen=True)
class Machine:
    """Read speeds of the machine, in bytes per second."""

    memory_bandwidth: float
    disk_bandwidth: float

    def at_best(self, other: "Machine") -> "Machine":
        """The faster of two measurements, because other load can only slow them down."""
        return Machine(
            max(self.memory_bandwidth, other.memory_bandwidth),
            max(self.disk_bandwidth, other.disk_bandwidth),
        )

    def tokens_per_second(self, weight_bytes: float, disk_bytes: float) -> float:
        """The maximum speed for these bytes per token, which the slower of memory and disk determines."""
        return 1 / max(weight_bytes / self.memory_bandwidth, disk_bytes / self.disk_bandwidth)


@dataclass(frozen=True)
class Result:
    """One system under one limit with a number of sequences at once.

    Speeds are in tokens per second of all sequences together.
    """

    limit: str
    system: str
    sequences: int
    start_seconds: float | None = None
    """Seconds until the server, whose weights are on disk, takes requests."""
    prefill_short: float | None = None
    """Prefill speed of prompts of 64 tokens."""
    prefill_long: float | None = None
    """Prefill speed of prompts of 512 tokens."""
    decode: float | None = None
    """Decode speed, the median of the rounds."""
    first_half: float | None = None
    """Decode speed in the first half of the first round, in which most experts are cold."""
    second_half: float | None = None
    """Decode speed in the second half of the first round."""
    memory_mean: float | None = None
    """Mean of the proportional set size of all processes, in bytes."""
    memory_peak: float | None = None
    """Peak of the proportional set size of all processes, in bytes."""
    charged: float | None = None
    """Bytes charged to the control group at the end, including page cache."""
    out_of_memory_kills: int | None = None
    """Number of processes that the kernel has killed because of the limit."""
    expert_bytes_read: float | None = None
    """Bytes of experts read from disk per token, from the server's metrics."""
    disk_bytes_read: float | None = None
    """Bytes read from disk per token, as the kernel counts them."""
    cold_experts: float | None = None
    """Experts per token that were read from disk during a call."""
    step_ms: Mapping[str, float] = field(default_factory=dict)
    """Milliseconds of a decode step by its parts, means over the rounds."""
    weight_bytes_used: float | None = None
    """Bytes of weights per token. A step reads each expert once for all sequences."""
    share_of_limit: float | None = None
    """Decode speed as a share of the maximum that the machine allows for these bytes."""
    machine: Machine | None = None
    problem: str = ""
    """Why there are no figures; empty if there are."""

    @property
    def key(self) -> tuple[str, str, int]:
        """Identifies the measurement, so that a repeated one replaces its result."""
        return self.limit, self.system, self.sequences


_SPEEDS = {
    "prefill of 64": "prefill_short",
    "of 512": "prefill_long",
    "decode": "decode",
    "first half": "first_half",
    "second half": "second_half",
}
_BYTES = {
    "memory, mean": "memory_mean",
    "peak": "memory_peak",
    "charged": "charged",
    "weights/token": "weight_bytes_used",
    "experts read/token": "expert_bytes_read",
    "disk/token": "disk_bytes_read",
}


class Results:
    """The latest results of all measurements. A repeated measurement replaces its earlier result."""

    def __init__(self, file: Path) -> None:
        """Read the file, if it exists. Raises `ConfigError` if it holds something else."""
        self._file = file
        self._by_key: dict[tuple[str, str, int], Result] = {}
        if file.exists():
            try:
                for entry in json.loads(file.read_text()):
                    self._put(_result(entry))
            except (ValueError, TypeError, KeyError) as error:
                raise ConfigError(f"{file} does not hold results: {error}") from error

    def add(self, results: Iterable[Result]) -> None:
        """Add results, and write the file."""
        for result in results:
            self._put(result)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(
            json.dumps([asdict(result) for result in self._by_key.values()], indent=1) + "\n"
        )

    def markdown(self) -> str:
        """Both tables, in the order of the first measurements."""
        results = list(self._by_key.values())
        return f"{markdown(results)}\n\n{steps_markdown(results)}"

    def _put(self, result: Result) -> None:
        self._by_key[result.key] = result


def markdown(results: Sequence[Result]) -> str:
    """The table of speeds (tokens/s), memory (GB) and bytes per token (MB)."""
    header = ["limit", "system", "sequences", *_SPEEDS, *_BYTES, "kills", "of what the machine allows"]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for result in results:
        cells = [result.limit, result.system, str(result.sequences)]
        if result.problem:
            cells.append(result.problem)
        else:
            cells += [_cell(getattr(result, name), "{:.1f}") for name in _SPEEDS.values()]
            cells += [_size(title, getattr(result, name)) for title, name in _BYTES.items()]
            cells.append(_cell(result.out_of_memory_kills, "{}"))
            cells.append(_cell(result.share_of_limit, "{:.0%}"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def steps_markdown(results: Sequence[Result]) -> str:
    """The table of a decode step's parts, in milliseconds."""
    measured = [result for result in results if result.step_ms]
    parts = list(dict.fromkeys(part for result in measured for part in result.step_ms))
    header = ["limit", "system", "sequences", "a step, ms", *parts, "cold experts/token"]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for result in measured:
        cells = [result.limit, result.system, str(result.sequences), f"{sum(result.step_ms.values()):.1f}"]
        cells += [_cell(result.step_ms.get(part), "{:.1f}") for part in parts]
        cells.append(_cell(result.cold_experts, "{:.1f}"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _size(title: str, value: float | None) -> str:
    if "token" in title:
        return _cell(value and value / 1e6, "{:.1f} MB")
    return _cell(value and value / 1e9, "{:.2f} GB")


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _result(entry: Mapping[str, Any]) -> Result:
    machine = entry["machine"] and Machine(**entry["machine"])
    return Result(**{**entry, "machine": machine})
