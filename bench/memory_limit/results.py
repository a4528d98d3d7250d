"""What `make bench-memory` has found: kept as JSON from run to run, shown as a table in Markdown."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from control_plane.errors import ConfigError


@dataclass(frozen=True)
class Machine:
    """What it reads, in bytes per second."""

    memory_bandwidth: float
    disk_bandwidth: float

    def at_best(self, other: "Machine") -> "Machine":
        """The faster of two measurements: whatever else runs makes both only slower."""
        return Machine(
            max(self.memory_bandwidth, other.memory_bandwidth),
            max(self.disk_bandwidth, other.disk_bandwidth),
        )

    def tokens_per_second(self, weight_bytes: float, disk_bytes: float) -> float:
        """The most that it allows: of the time for the one and for the other, the longer."""
        return 1 / max(weight_bytes / self.memory_bandwidth, disk_bytes / self.disk_bandwidth)


@dataclass(frozen=True)
class Result:
    """One system under one limit with so many sequences at once; speeds are tokens per second of all."""

    limit: str
    system: str
    sequences: int
    prefill_short: float | None = None
    """Of prompts of 64 tokens."""
    prefill_long: float | None = None
    """Of prompts of 512."""
    decode: float | None = None
    """Median of the rounds; the halves are those of the first round, in which most is cold."""
    first_half: float | None = None
    second_half: float | None = None
    memory_mean: float | None = None
    """Bytes: proportional set size of all processes."""
    memory_peak: float | None = None
    charged: float | None = None
    """Bytes that the control group counts at the end, page cache among them."""
    out_of_memory_kills: int | None = None
    """Processes that the kernel has killed for the limit."""
    expert_bytes_read: float | None = None
    """Per token, as the server's metrics count them; `disk_bytes_read` as the kernel does."""
    disk_bytes_read: float | None = None
    cold_experts: float | None = None
    """Per token: read from disk while they were waited for."""
    step_ms: Mapping[str, float] = field(default_factory=dict)
    """Of a step that decodes, by what the engine did: milliseconds, means over the rounds."""
    weight_bytes_used: float | None = None
    """Per token; each expert is read once for all sequences of a step."""
    share_of_limit: float | None = None
    """Of the speed that memory and disk, by `machine`, allow for these bytes."""
    machine: Machine | None = None
    problem: str = ""
    """Why there are no figures."""

    @property
    def key(self) -> tuple[str, str, int]:
        """What it is the result of."""
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
    """The last result of everything that was measured; a part that is measured again takes its own place."""

    def __init__(self, file: Path) -> None:
        """Raises `ConfigError` for a file that holds something else."""
        self._file = file
        self._by_key: dict[tuple[str, str, int], Result] = {}
        if file.exists():
            try:
                for entry in json.loads(file.read_text()):
                    self._put(_result(entry))
            except (ValueError, TypeError, KeyError) as error:
                raise ConfigError(f"{file} does not hold results: {error}") from error

    def add(self, results: Iterable[Result]) -> None:
        """Take them in, and write the file."""
        for result in results:
            self._put(result)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(
            json.dumps([asdict(result) for result in self._by_key.values()], indent=1) + "\n"
        )

    def markdown(self) -> str:
        """Tables, in the order in which things were measured first."""
        results = list(self._by_key.values())
        return f"{markdown(results)}\n\n{steps_markdown(results)}"

    def _put(self, result: Result) -> None:
        self._by_key[result.key] = result


def markdown(results: Sequence[Result]) -> str:
    """Tokens per second, memory in GB, bytes per token in MB."""
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
    """Milliseconds of a step, by what the engine did."""
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


def _result(entry: Mapping) -> Result:
    machine = entry["machine"] and Machine(**entry["machine"])
    return Result(**{**entry, "machine": machine})
