"""The settings of one run of `faasmoe bench run`, and the workload and tasks that follow from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.comparison.comparison import Task
from bench.comparison.strategies.strategies import read_strategies
from bench.comparison.workload import generators, workload
from bench.comparison.workload.workload import WorkloadRequest
from control_plane.errors import ConfigError
from control_plane.partition.recipes import DENSE_DTYPES

QUANTISED = [dtype for dtype in DENSE_DTYPES if dtype != "auto"]
"""Types that experts and dense part may have."""


@dataclass(frozen=True)
class RunSettings:
    """The options of the command. They are recorded, so that `--resume` continues with the same ones."""

    strategies: Sequence[str]
    shape: str
    """Shape of the random model, unless `model` is set."""
    model: str | None
    """Folder of a checkpoint to serve instead of random weights."""
    tenants: int
    workload: str
    """One of `generators.KINDS`, or a workload file."""
    tasks: str | None
    """Folder with the tasks of BIG-Bench-Hard."""
    rounds: int
    duration: float
    """Length of a workload without rounds, in seconds."""
    rate: float
    """Requests per second of all tenants, for a workload without rounds."""
    output_tokens: int
    experts_per_function: Sequence[int]
    """Function sizes to measure FaaSMoE-Shared with, besides the default."""
    threads: int
    idle_timeout: float
    """Seconds without a call before a function is scaled to zero."""
    memory_budget: int | None
    """Bytes; if set, FaaSMoE-Shared is also measured within this budget."""
    dtypes: Sequence[str]
    """Some of `QUANTISED`, to measure FaaSMoE-Shared with besides the checkpoint's own type."""
    llama_server: str | None
    """llama.cpp's server program; None if it is not installed."""
    seed: int

    def requests(self) -> list[WorkloadRequest]:
        """The workload: generated, or read from the file. Raises `ConfigError`."""
        if self.workload in generators.KINDS:
            return generators.make(
                self.workload,
                generators.tenants(self.tenants),
                rate=self.rate,
                duration=self.duration,
                tasks=Path(self.tasks) if self.tasks else None,
                rounds=self.rounds,
                output_tokens=self.output_tokens,
                seed=self.seed,
            )
        if not Path(self.workload).is_file():
            kinds = ", ".join(generators.KINDS)
            raise ConfigError(f"no workload {self.workload!r}: it is {kinds}, or a file")
        return workload.read(Path(self.workload))

    def tenant_names(self, requests: Sequence[WorkloadRequest]) -> list[str]:
        """All tenants to serve.

        A generated workload can leave a tenant without requests; the tenant is served nevertheless. The
        tenants of a workload file are those that occur in it.
        """
        if self.workload in generators.KINDS:
            return generators.tenants(self.tenants)
        return sorted({request.tenant for request in requests})

    def workload_description(self) -> str:
        """The workload in words, for the report."""
        open_loop = f"{self.rate:g} requests/s for {self.duration:g} s"
        questions = "BIG-Bench-Hard's questions" if self.tasks else "prompts as long as BIG-Bench-Hard's"
        return {
            "poisson": f"Poisson arrivals, {open_loop}",
            "bursty": f"bursts of each tenant, {open_loop} on average",
            "bbh": f"{self.rounds} rounds of {questions}, {generators.TASKS_PER_TENANT} a tenant at once",
        }.get(self.workload, f"the workload of {Path(self.workload).name}")

    def tasks_to_measure(self) -> list[Task]:
        """The strategies, then FaaSMoE-Shared within the memory budget, and with each type and function size.

        Raises `ConfigError` for an unknown strategy or type.
        """
        if unknown := [dtype for dtype in self.dtypes if dtype not in QUANTISED]:
            raise ConfigError(f"no type {unknown[0]!r} to measure; there are {', '.join(QUANTISED)}")
        (shared,) = read_strategies(["faasmoe-shared"])
        return [
            *(Task(strategy) for strategy in read_strategies(self.strategies, self.llama_server)),
            *([Task(shared, memory_budget=self.memory_budget)] if self.memory_budget else []),
            *(Task(shared, dtype=dtype) for dtype in self.dtypes),
            *(Task(shared, size) for size in self.experts_per_function),
        ]
