"""Converts public traces into workloads: Azure's LLM inference traces of 2023, and BurstGPT.

The traces have no tenants, so each request gets a random one; tenants have unequal shares.
"""

import csv
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench.comparison.workload.workload import WorkloadRequest
from control_plane.errors import ConfigError


@dataclass(frozen=True)
class Columns:
    """Names of a trace's columns, and the format of its times."""

    time: str
    prompt_tokens: str
    output_tokens: str
    seconds: Callable[[str], float]
    """Parses the trace's times to seconds."""


def _timestamp(text: str) -> float:
    """Seconds of a date and time, taken as UTC: local clocks can go back."""
    return datetime.fromisoformat(text.strip()).replace(tzinfo=UTC).timestamp()


TRACES: Mapping[str, Columns] = {
    "azure": Columns("TIMESTAMP", "ContextTokens", "GeneratedTokens", _timestamp),
    "burstgpt": Columns("Timestamp", "Request tokens", "Response tokens", float),
}


@dataclass(frozen=True)
class Conversion:
    """Parameters of the conversion of a trace into a workload."""

    tenants: Sequence[str]
    seed: int
    scale: float = 1.0
    """Factor for the numbers of tokens."""
    speed: float = 1.0
    """Seconds of the trace for each second of the workload."""
    seconds: float = float("inf")
    """Maximum length of the workload."""

    def requests(self, file: Path, columns: Columns) -> list[WorkloadRequest]:
        """Convert a trace. Leaves out failed requests, which have no tokens.

        Raises `ConfigError`, which names the line.
        """
        generator = random.Random(self.seed)
        shares = [1 / rank for rank in range(1, len(self.tenants) + 1)]
        requests = []
        first: float | None = None
        for seconds, prompt_tokens, output_tokens in _rows(file, columns):
            first = seconds if first is None else first
            arrival = (seconds - first) / self.speed
            if arrival >= self.seconds:
                break
            (tenant,) = generator.choices(self.tenants, shares)
            if prompt_tokens and output_tokens:
                requests.append(
                    WorkloadRequest(
                        tenant,
                        round(arrival, 4),
                        max(round(output_tokens * self.scale), 1),
                        prompt_tokens=max(round(prompt_tokens * self.scale), 1),
                    )
                )
        if not requests:
            raise ConfigError(f"{file} has no requests")
        return requests


def _rows(file: Path, columns: Columns) -> Iterator[tuple[float, int, int]]:
    """Time in seconds, prompt tokens and generated tokens of each line."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines)
            wanted = (columns.time, columns.prompt_tokens, columns.output_tokens)
            for name in wanted:
                if name not in (reader.fieldnames or ()):
                    raise ConfigError(f"{file} has no column {name!r}, but {reader.fieldnames or 'none'}")
            before = float("-inf")
            for row in reader:
                where = f"{file}, line {reader.line_num}"
                if any(not row[name] for name in wanted):
                    raise ConfigError(f"{where}: cut off")
                try:
                    seconds = columns.seconds(row[columns.time])
                    tokens = int(row[columns.prompt_tokens]), int(row[columns.output_tokens])
                except ValueError as error:
                    raise ConfigError(f"{where}: {error}") from error
                if min(tokens) < 0:
                    raise ConfigError(f"{where}: {min(tokens)} tokens")
                if seconds < before:
                    raise ConfigError(f"{where}: time goes backwards")
                before = seconds
                yield seconds, *tokens
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{file} is no CSV file: {error}") from error
