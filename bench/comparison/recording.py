"""What a comparison has found, as it is kept: a folder of JSON, a file for the run and one for each strategy.

The report is made of these alone.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.comparison.replay import RequestOutcome
from bench.comparison.resources import Moment
from control_plane.errors import ConfigError

RUN_FILE = "run.json"
DIGITS = 4
"""After the point: tenths of a millisecond."""


@dataclass(frozen=True)
class RunDescription:
    """What was run, where."""

    workload: str
    """What it is, in words."""
    model: str
    num_requests: int
    tenants: Sequence[str]
    settings: Mapping[str, Any]
    """What the command was told. A run is gone on with only as it was begun."""
    dense_bytes: int
    experts_bytes: int
    num_experts: int
    moe_layers: int
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    began: str
    """Date and time."""


@dataclass(frozen=True)
class Calls:
    """Of functions, as the control planes count them."""

    invocations: float
    rows: float
    seconds: float
    """Compute time inside the functions."""
    sent_bytes: float
    received_bytes: float
    cold_experts: float
    """Experts that had to be read from disk while they were waited for."""


@dataclass(frozen=True)
class StrategyResult:
    """One strategy, with functions of one size."""

    strategy: str
    title: str = ""
    experts_per_function: int | None = None
    """None for a strategy without functions, and for the granularity that is usual."""
    memory_budget: int | None = None
    """Bytes."""
    functions: int = 0
    problem: str = ""
    """Why there is nothing else."""
    needs_bytes: int = 0
    """By computation."""
    ready_seconds: float = 0.0
    shortfall: float = 0.0
    """Of the answers that were checked, see bench/comparison/greedy.py."""
    outcomes: Sequence[RequestOutcome] = field(default_factory=list)
    moments: Sequence[Moment] = field(default_factory=list)
    """While the workload was replayed."""
    idle: Sequence[Moment] = field(default_factory=list)
    """After that, and after the idle timeout."""
    calls: Calls | None = None
    cached_bytes: int = 0
    """Page cache of the files with weights, at the end of the replay."""

    @property
    def key(self) -> str:
        """What its file is called."""
        size = "" if self.experts_per_function is None else f"-{self.experts_per_function}"
        budget = "" if self.memory_budget is None else f"-within-{self.memory_budget // 1_000_000}MB"
        return self.strategy + size + budget


@dataclass(frozen=True)
class Recording:
    """A folder of results."""

    folder: Path
    run: RunDescription
    measured: dict[str, StrategyResult] = field(default_factory=dict)
    """By key."""

    @classmethod
    def begin(cls, folder: Path, run: RunDescription) -> "Recording":
        """In a folder that has none yet. Raises `ConfigError`."""
        cls.refuse_results(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / RUN_FILE, run)
        except OSError as error:
            raise ConfigError(f"cannot write to {folder}: {error.strerror}") from error
        return cls(folder, run)

    @staticmethod
    def refuse_results(folder: Path) -> None:
        """Raises `ConfigError` for a folder that has some."""
        if (folder / RUN_FILE).exists():
            raise ConfigError(f"{folder} has results already: --resume goes on with them")

    @classmethod
    def load(cls, folder: Path) -> "Recording":
        """Raises `ConfigError` for a folder without results, or with a file that is none."""
        if not (folder / RUN_FILE).exists():
            raise ConfigError(f"{folder} has no results of `faasmoe bench run`")
        recording = cls(folder, _read(folder / RUN_FILE, lambda entry: RunDescription(**entry)))
        for file in sorted(folder.glob("*.json")):
            if file.name != RUN_FILE:
                measured = _read(file, _measured)
                recording.measured[measured.key] = measured
        return recording

    def add(self, measured: StrategyResult) -> None:
        """Keep it, in the place of an earlier one with its key."""
        self.measured[measured.key] = measured
        _write(self.folder / f"{measured.key}.json", measured)


def _write(file: Path, value: Any) -> None:
    """Whole, or not at all."""
    text = json.dumps(asdict(value))
    rounded = json.loads(text, parse_float=lambda number: round(float(number), DIGITS))
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(rounded, separators=(",", ":")) + "\n", encoding="utf-8")
    partial.replace(file)


def _read(file: Path, make: Any) -> Any:
    try:
        return make(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{file} is no result of `faasmoe bench run`: {error}") from error


def _measured(entry: dict[str, Any]) -> StrategyResult:
    return StrategyResult(
        **{
            **entry,
            "outcomes": [RequestOutcome(**outcome) for outcome in entry["outcomes"]],
            "moments": [Moment(**moment) for moment in entry["moments"]],
            "idle": [Moment(**moment) for moment in entry["idle"]],
            "calls": Calls(**entry["calls"]) if entry["calls"] else None,
        }
    )
