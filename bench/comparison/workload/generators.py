"""Makes workloads: rounds of BIG-Bench-Hard's tasks as in the paper, and random arrivals, all from a seed."""

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.comparison.workload.workload import WorkloadRequest
from control_plane.errors import ConfigError

KINDS = ("bbh", "poisson", "bursty")
TASKS_PER_TENANT = 5
"""In a round, as in the paper."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompts and answers: log-normal around a median, cut off at a most."""

    prompt_median: int = 64
    prompt_most: int = 512
    output_median: int = 24
    output_most: int = 96
    spread: float = 0.6
    """Standard deviation of the logarithm."""

    def draw(self, generator: random.Random) -> tuple[int, int]:
        """Of one request."""
        prompt = generator.lognormvariate(0.0, self.spread) * self.prompt_median
        output = generator.lognormvariate(0.0, self.spread) * self.output_median
        return min(max(round(prompt), 1), self.prompt_most), min(max(round(output), 1), self.output_most)


def tenants(number: int) -> list[str]:
    """Their names."""
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
    """The one of KINDS, which takes of the rest what it needs. Raises `ConfigError`."""
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
    """Rounds in which each tenant asks one example of each of five tasks, all at once.

    `folder` has the tasks' JSON files. Raises `ConfigError`.
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
    """The same without the tasks: random tokens, as many as their questions have (in tokens, about 40)."""
    generator = random.Random(seed)
    lengths = Lengths(prompt_median=40, prompt_most=160)
    return [
        WorkloadRequest(name, 0.0, output_tokens, prompt_tokens=lengths.draw(generator)[0], round=number)
        for number in range(rounds)
        for name in names
        for _ in range(TASKS_PER_TENANT)
    ]


def read_tasks(folder: Path) -> dict[str, list[str]]:
    """The examples' questions of each task. Raises `ConfigError` for a folder without any."""
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
    """Each tenant asks at random, `rate` / number of tenants times a second."""
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
    """Each tenant is busy, then silent, for random times of those means; `rate` is that of all, over time.

    A tenant that is busy asks as much faster as it is silent longer. By default one asks for ten
    seconds every four minutes.
    """
    generator = random.Random(seed)
    busy_rate = rate / len(names) * (busy_seconds + idle_seconds) / busy_seconds
    arrivals = []
    for name in names:
        # Where in its rhythm a tenant is at the start is random, too.
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
    """Moments of a Poisson process."""
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
