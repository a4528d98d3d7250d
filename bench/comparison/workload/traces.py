"""Public traces of requests as workloads: Azure's LLM inference traces of 2023, and BurstGPT's.

Neither has tenants: a request's is drawn at random, with unequal shares, as tenants are. `scale` makes
prompts and answers shorter, `speed` time faster.
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
    """What the columns of a trace are called, and how its times read."""

    time: str
    prompt_tokens: str
    output_tokens: str
    seconds: Callable[[str], float]


def _timestamp(text: str) -> float:
    """Seconds of a date and time. In no place's time: in some, clocks go back."""
    return datetime.fromisoformat(text.strip()).replace(tzinfo=UTC).timestamp()


TRACES: Mapping[str, Columns] = {
    "azure": Columns("TIMESTAMP", "ContextTokens", "GeneratedTokens", _timestamp),
    "burstgpt": Columns("Timestamp", "Request tokens", "Response tokens", float),
}


@dataclass(frozen=True)
class Conversion:
    """How a trace becomes a workload."""

    tenants: Sequence[str]
    seed: int
    scale: float = 1.0
    """Factor of the numbers of tokens."""
    speed: float = 1.0
    """So many seconds of the trace are one."""
    seconds: float = float("inf")
    """How much of it, after that."""

    def requests(self, file: Path, columns: Columns) -> list[WorkloadRequest]:
        """Raises `ConfigError`, which names the line. What generated nothing (it failed) is left out."""
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
    """Seconds, prompt tokens and generated tokens of each line."""
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
