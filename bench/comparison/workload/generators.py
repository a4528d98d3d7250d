"""Generates workloads from a seed: the paper's rounds of BIG-Bench-Hard tasks, and random arrivals."""

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.comparison.workload.workload import WorkloadRequest
from control_plane.errors import ConfigError

KINDS = ("bbh", "poisson", "bursty")
TASKS_PER_TENANT = 5
"""Requests of a tenant in each round, as in the paper."""


@dataclass(frozen=True)
class Lengths:
    """Lengths of prompts and answers in tokens: log-normal around a median, up to a maximum."""

    prompt_median: int = 64
    prompt_max: int = 512
    output_median: int = 24
    output_max: int = 96
    spread: float = 0.6
    """Standard deviation of the logarithm."""

    def draw(self, generator: random.Random) -> tuple[int, int]:
        """Prompt tokens and output tokens of one request."""
        prompt = generator.lognormvariate(0.0, self.spread) * self.prompt_median
        output = generator.lognormvariate(0.0, self.spread) * self.output_median
        return min(max(round(prompt), 1), self.prompt_max), min(max(round(output), 1), self.output_max)


def tenants(number: int) -> list[str]:
    """Names of generated tenants."""
    return [f"tenant-{n}" for n in range(1, number + 1)]


def make(
    kind: str,
    names: Sequence[str],
    *,
    rate: float,
    duration: float,
    tasks: Path | None,
    rounds: int,
    output_tokens: int,
    seed: int,
) -> list[WorkloadRequest]:
    """Generate a workload of a kind in KINDS. Raises `ConfigError`.

    `rate` (requests per second of all tenants) and `duration` (seconds) are for random arrivals; `tasks` (a
    folder), `rounds` and `output_tokens` are for bbh.
    """
    if kind in ARRIVALS:
        requests = ARRIVALS[kind](names, rate, duration, seed)
        if not requests:
            raise ConfigError(f"nobody asks for anything within {duration:g} s: make it longer")
        return requests
    if tasks is None:
        return rounds_like_bbh(names, rounds, output_tokens, seed)
    return bbh(tasks, names, rounds, output_tokens, seed)


def bbh(
    folder: Path, names: Sequence[str], rounds: int, output_tokens: int, seed: int
) -> list[WorkloadRequest]:
    """Rounds in which each tenant asks one question from each of five tasks, all at once.

    `folder` contains the JSON files of the tasks. Raises `ConfigError`.
    """
    tasks = read_tasks(folder)
    generator = random.Random(seed)
    return [
        WorkloadRequest(name, 0.0, output_tokens, prompt=generator.choice(tasks[task]), round=number)
        for number in range(rounds)
        for name in names
        for task in generator.sample(sorted(tasks), min(TASKS_PER_TENANT, len(tasks)))
    ]


def rounds_like_bbh(
    names: Sequence[str], rounds: int, output_tokens: int, seed: int
) -> list[WorkloadRequest]:
    """Rounds like those of `bbh`, with random prompts as long as its questions (about 40 tokens)."""
    generator = random.Random(seed)
    lengths = Lengths(prompt_median=40, prompt_max=160)
    return [
        WorkloadRequest(name, 0.0, output_tokens, prompt_tokens=lengths.draw(generator)[0], round=number)
        for number in range(rounds)
        for name in names
        for _ in range(TASKS_PER_TENANT)
    ]


def read_tasks(folder: Path) -> dict[str, list[str]]:
    """Questions by task. Raises `ConfigError` for a folder without tasks, and a file that is not a task."""
    tasks = {}
    for file in sorted(folder.glob("*.json")):
        try:
            questions = [example["input"] for example in json.loads(file.read_text())["examples"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{file} is no task of BIG-Bench-Hard: {error}") from error
        if not questions or not all(isinstance(question, str) and question for question in questions):
            raise ConfigError(f"{file} is no task of BIG-Bench-Hard: no questions in it")
        tasks[file.stem] = questions
    if not tasks:
        raise ConfigError(f"{folder} has no tasks: JSON files of BIG-Bench-Hard")
    return tasks


def poisson(
    names: Sequence[str], rate: float, seconds: float, seed: int, lengths: Lengths | None = None
) -> list[WorkloadRequest]:
    """Independent Poisson arrivals of each tenant; `rate` is the sum over all tenants, per second."""
    generator = random.Random(seed)
    arrivals = [
        (arrival, name) for name in names for arrival in _arrivals(generator, rate / len(names), 0.0, seconds)
    ]
    return _requests(arrivals, generator, lengths or Lengths())


def bursty(
    names: Sequence[str],
    rate: float,
    seconds: float,
    seed: int,
    busy_seconds: float = 10.0,
    idle_seconds: float = 230.0,
    lengths: Lengths | None = None,
) -> list[WorkloadRequest]:
    """Tenants that are busy and idle in turn, for exponential times with these means.

    `rate` is the mean over time of all tenants, per second, so a busy tenant sends requests at a higher rate.
    By default a tenant is busy for ten seconds every four minutes.
    """
    generator = random.Random(seed)
    busy_rate = rate / len(names) * (busy_seconds + idle_seconds) / busy_seconds
    arrivals = []
    for name in names:
        # Tenants start at a random place in their cycle.
        start = generator.uniform(-busy_seconds, idle_seconds)
        while start < seconds:
            end = min(start + generator.expovariate(1 / busy_seconds), seconds)
            arrivals += [(arrival, name) for arrival in _arrivals(generator, busy_rate, max(start, 0.0), end)]
            start = end + generator.expovariate(1 / idle_seconds)
    return _requests(arrivals, generator, lengths or Lengths())


ARRIVALS: Mapping[str, Callable[[Sequence[str], float, float, int], list[WorkloadRequest]]] = {
    "poisson": poisson,
    "bursty": bursty,
}


def _arrivals(generator: random.Random, rate: float, start: float, end: float) -> Iterator[float]:
    """Arrival times of a Poisson process."""
    moment = start + generator.expovariate(rate)
    while moment < end:
        yield moment
        moment += generator.expovariate(rate)


def _requests(
    arrivals: Sequence[tuple[float, str]], generator: random.Random, lengths: Lengths
) -> list[WorkloadRequest]:
    requests = []
    for arrival, name in sorted(arrivals):
        prompt_tokens, output_tokens = lengths.draw(generator)
        requests.append(WorkloadRequest(name, round(arrival, 4), output_tokens, prompt_tokens=prompt_tokens))
    return requests
