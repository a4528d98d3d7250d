"""The results of a comparison as JSON files in one folder: one for the run, and one for each strategy.

The report is made from these files alone.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bench.comparison.measuring.replay import RequestOutcome
from bench.comparison.measuring.resources import Moment
from control_plane.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

RUN_FILE = "run.json"
DIGITS = 4
"""Decimal places: times are kept to a tenth of a millisecond."""
Result = TypeVar("Result")


@dataclass(frozen=True)
class RunDescription:
    """The settings of a run, and the machine that it ran on."""

    workload: str
    """The workload in words."""
    model: str
    num_requests: int
    tenants: Sequence[str]
    settings: Mapping[str, Any]
    """The fields of `RunSettings`, with which the run can be resumed."""
    dense_bytes: int
    experts_bytes: int
    num_experts: int
    moe_layers: int
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    began: str
    """Date and time in ISO format, UTC."""


@dataclass(frozen=True)
class FunctionCalls:
    """Function calls during the replay, as the control planes count them."""

    invocations: float
    rows: float
    seconds: float
    """Compute time inside the functions."""
    sent_bytes: float
    received_bytes: float
    cold_experts: float
    """Experts that a function had to read from disk during a call."""


@dataclass(frozen=True)
class StrategyResult:
    """The measurements of one strategy, with functions of one size."""

    strategy: str
    title: str = ""
    experts_per_function: int | None = None
    """Experts in each function; None for a strategy without functions, and for the default granularity."""
    memory_budget: int | None = None
    """Memory budget in bytes; None is no budget."""
    dtype: str | None = None
    """Type of FaaSMoE's weights; None is the checkpoint's own."""
    functions: int = 0
    problem: str = ""
    """Why the strategy was not measured; empty if it was."""
    needs_bytes: int = 0
    """The least memory that the strategy needs, computed from the size of the model."""
    ready_seconds: float = 0.0
    """Time from the start of the processes until all serve."""
    shortfall: float = 0.0
    """Shortfall of the answers that were checked, see greedy.py."""
    outcomes: Sequence[RequestOutcome] = field(default_factory=list)
    moments: Sequence[Moment] = field(default_factory=list)
    """Samples of resources during the replay."""
    idle: Sequence[Moment] = field(default_factory=list)
    """Samples after the replay and the idle timeout."""
    calls: FunctionCalls | None = None
    cached_bytes: int = 0
    """Page cache of the files with weights, at the end of the replay."""

    @property
    def key(self) -> str:
        """The name of the result's file, without the suffix."""
        size = "" if self.experts_per_function is None else f"-{self.experts_per_function}"
        budget = "" if self.memory_budget is None else f"-within-{self.memory_budget // 1_000_000}MB"
        dtype = "" if self.dtype is None else f"-{self.dtype}"
        return self.strategy + size + budget + dtype


@dataclass(frozen=True)
class Recording:
    """A folder of results."""

    folder: Path
    run: RunDescription
    results: dict[str, StrategyResult] = field(default_factory=dict)
    """Results by their key."""

    @classmethod
    def begin(cls, folder: Path, run: RunDescription) -> "Recording":
        """Start in a folder without results. Raises `ConfigError`."""
        cls.refuse_results(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / RUN_FILE, run)
        except OSError as error:
            raise ConfigError(f"cannot write to {folder}: {error.strerror}") from error
        return cls(folder, run)

    @staticmethod
    def refuse_results(folder: Path) -> None:
        """Raises `ConfigError` if the folder has results."""
        if (folder / RUN_FILE).exists():
            raise ConfigError(f"{folder} has results already: --resume continues their run")

    @classmethod
    def load(cls, folder: Path) -> "Recording":
        """Read a folder. Raises `ConfigError` if it has no results, or a file is not one."""
        if not (folder / RUN_FILE).exists():
            raise ConfigError(f"{folder} has no results of `faasmoe bench run`")
        recording = cls(folder, _read(folder / RUN_FILE, lambda entry: RunDescription(**entry)))
        for file in sorted(folder.glob("*.json")):
            if file.name != RUN_FILE:
                result = _read(file, _strategy_result)
                recording.results[result.key] = result
        return recording

    def add(self, result: StrategyResult) -> None:
        """Keep a result, and replace an earlier one with the same key."""
        self.results[result.key] = result
        _write(self.folder / f"{result.key}.json", result)


def _write(file: Path, value: "DataclassInstance") -> None:
    """Write the file in one piece, so that an interrupted run leaves no half of it."""
    text = json.dumps(asdict(value))
    rounded = json.loads(text, parse_float=lambda number: round(float(number), DIGITS))
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(rounded, separators=(",", ":")) + "\n", encoding="utf-8")
    partial.replace(file)


def _read(file: Path, make: Callable[[dict[str, Any]], Result]) -> Result:
    try:
        return make(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{file} is no result of `faasmoe bench run`: {error}") from error


def _strategy_result(entry: dict[str, Any]) -> StrategyResult:
    return StrategyResult(
        **{
            **entry,
            "outcomes": [RequestOutcome(**outcome) for outcome in entry["outcomes"]],
            "moments": [Moment(**moment) for moment in entry["moments"]],
            "idle": [Moment(**moment) for moment in entry["idle"]],
            "calls": FunctionCalls(**entry["calls"]) if entry["calls"] else None,
        }
    )
